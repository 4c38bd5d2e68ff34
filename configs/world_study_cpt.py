"""`make study`: Arabic on the base, with the ratio and the rate that the law sets.

Of two pairs with equally many runs, the law reports the first by name in full: en+ar.
"""

from configs.world_study import cpt

config = cpt("ar")
