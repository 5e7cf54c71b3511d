"""Where data comes from: one file for each kind, each giving a `Source`."""
