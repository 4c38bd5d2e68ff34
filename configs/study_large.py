"""The large base of the study, trained on English."""

from configs.study import large as config

__all__ = ["config"]
