"""Everything that has an optimiser."""
