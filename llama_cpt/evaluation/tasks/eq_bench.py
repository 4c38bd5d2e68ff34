"""EQ-Bench's rule (arXiv 2312.06281, v2 of EQ-bench/EQ-Bench): how near four emotions are rated."""

from collections.abc import Sequence
import json
import math
import re
from typing import Any

ADJUSTMENT = 0.7477
"""Makes answers at random score 0."""
LEAST_PARSEABLE = 0.83
"""Of all answers; a benchmark with fewer has no published score."""


def closeness(row: dict[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """``eqbench`` (100: as the reference; 0 where the answer cannot be read) and ``parseable``."""
    rated = dict(re.findall(r"(\w+):\s+(\d+)", answers[0]))
    reference = json.loads(row["reference"])
    wanted = {reference[f"emotion{i}"]: reference[f"emotion{i}_score"] for i in range(1, 5)}
    if set(rated) != set(wanted):
        return {"eqbench": 0.0, "parseable": 0.0}
    distance = sum(_scaled(abs(float(rated[name]) - float(wanted[name]))) for name in wanted)
    return {"eqbench": 10 * (10 - ADJUSTMENT * distance), "parseable": 1.0}


def _scaled(difference: float) -> float:
    """Small differences count less than they are."""
    if difference == 0 or difference > 5:
        return difference
    return 6.5 / (1 + math.exp(-1.2 * (difference - 4)))
