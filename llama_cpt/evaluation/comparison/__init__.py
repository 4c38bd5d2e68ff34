"""Comparison of models that were scored on the same examples."""
