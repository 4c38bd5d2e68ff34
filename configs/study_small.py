"""The study's base of its small size, trained on English."""

from configs.study import small as config

__all__ = ["config"]
