"""Plain mathematics on NumPy arrays."""
