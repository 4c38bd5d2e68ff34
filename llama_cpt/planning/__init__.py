"""Memory, FLOPs, traffic and time of a training step compiled ahead of time."""
