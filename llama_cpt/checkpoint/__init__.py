"""Checkpoints: saving, verification and restoring."""
