"""Evaluation of models: benchmarks, bits per byte, comparisons and judged answers."""
