"""`make study`: the base model, trained on English."""

from configs.world_study import base as config

__all__ = ["config"]
