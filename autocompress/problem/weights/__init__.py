"""Weights and networks as files: checkpoints of training scripts, folders of model hubs."""
