"""Prices of a space's candidates as sums over pieces of the network that are priced once."""
