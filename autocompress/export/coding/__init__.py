"""Entropy coding of `.acz` files."""
