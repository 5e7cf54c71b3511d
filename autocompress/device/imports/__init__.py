"""A profile from the per-layer log of another tool; one file a tool."""
