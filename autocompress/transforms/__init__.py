"""A space and a network become sites; a candidate becomes a network."""
