"""Replay text that a model writes itself, for training without its original data."""
