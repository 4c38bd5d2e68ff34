"""A sandbox for generated code."""
