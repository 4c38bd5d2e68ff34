"""`make study`: the sweep that adds Chinese to the base."""

from configs.world_study import sweep

config = sweep("zh")
