"""Evaluation of models: benchmarks, bits per byte, comparison and judging."""
