"""Values with their intervals of 90 %."""

from typing import NamedTuple

import numpy as np

LEVEL = 0.9


class Band(NamedTuple):
    """A value and the interval of 90 % around it; numbers, or arrays of one shape."""

    value: np.ndarray | float
    low: np.ndarray | float
    high: np.ndarray | float
