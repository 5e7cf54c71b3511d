"""A network and its weights become files."""
