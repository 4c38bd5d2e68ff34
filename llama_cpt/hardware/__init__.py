"""Accelerators: data-sheet figures of each chip, and the slices of TPUs."""
