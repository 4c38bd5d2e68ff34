"""`make study`: Arabic onto the base; ratio and rate are the law's to set.

Of two pairs with as many runs the law tells the first by name in full: en+ar.
"""

from configs.world_study import cpt

config = cpt("ar")
