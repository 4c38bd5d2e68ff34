"""Objectives, the step, the loop and checkpoints."""
