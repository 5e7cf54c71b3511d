"""Everything that reads activations and trains nothing."""
