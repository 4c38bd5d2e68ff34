"""Estimates of a training step's memory, FLOPs, traffic and time, without running the step."""
