"""Accelerators: data-sheet figures of chips, and shapes of TPU slices."""
