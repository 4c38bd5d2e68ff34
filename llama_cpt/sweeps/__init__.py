"""Sweeps: many runs of the same config with different values of some fields."""
