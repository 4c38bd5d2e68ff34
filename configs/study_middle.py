"""The middle base of the study, trained on English."""

from configs.study import middle as config

__all__ = ["config"]
