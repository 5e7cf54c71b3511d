"""A candidate becomes weights, and weights become accuracy."""
