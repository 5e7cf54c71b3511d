"""The network as data: traced, run, coupled and rewritten."""
