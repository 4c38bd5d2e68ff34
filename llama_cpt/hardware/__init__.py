"""Accelerators: data-sheet figures of each chip and the slices that it comes in."""
