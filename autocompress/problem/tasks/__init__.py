"""Say what a network is for: its loss, its metric, what it learns from its teacher; a file for each kind."""
