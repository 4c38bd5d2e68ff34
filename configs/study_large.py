"""The study's base of its large size, trained on English."""

from configs.study import large as config

__all__ = ["config"]
