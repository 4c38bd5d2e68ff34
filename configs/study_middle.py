"""The study's base of its middle size, trained on English."""

from configs.study import middle as config

__all__ = ["config"]
