"""Blind pairwise comparison of answers by a person or a model."""
