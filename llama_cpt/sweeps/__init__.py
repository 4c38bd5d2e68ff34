"""Sweeps: many runs of one config that differ in a few values."""
