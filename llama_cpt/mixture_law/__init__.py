"""Mixture laws: from a table of runs to a mixture ratio and a learning rate, or a refusal."""
