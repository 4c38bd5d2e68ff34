"""The small base of the study, trained on English."""

from configs.study import small as config

__all__ = ["config"]
