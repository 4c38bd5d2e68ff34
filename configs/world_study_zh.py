"""`make study`: the sweep of one language onto the base."""

from configs.world_study import sweep

config = sweep("zh")
