"""`make study`: the sweep that adds Arabic to the base."""

from configs.world_study import sweep

config = sweep("ar")
