"""`make study`: Chinese onto the base; ratio and rate are the law's to set."""

from configs.world_study import cpt

config = cpt("zh")
