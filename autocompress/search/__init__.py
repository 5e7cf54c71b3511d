"""Who is tried, promoted, trained in full, and given up."""
