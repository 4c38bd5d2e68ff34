"""Comparisons of models by their scores on the same examples."""
