"""The compiled training step, the training loop, and what surrounds it."""
