"""Scoring of EQ-Bench (arXiv 2312.06281, v2 of EQ-bench/EQ-Bench).

An answer rates the intensity of four emotions.
"""

from collections.abc import Sequence
import json
import math
import re
from typing import Any

ADJUSTMENT = 0.7477
"""Factor that multiplies the distance from the reference, so that random answers score 0."""
LEAST_PARSEABLE = 0.83
"""Minimum share of parseable answers for which the authors of EQ-Bench define a score."""


def closeness(row: dict[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """Return the metrics ``eqbench`` and ``parseable`` of one answer.

    ``eqbench`` is 100 if all ratings are equal to the reference, and 0 if the answer cannot be
    parsed. ``parseable`` is 1 or 0.
    """
    rated = dict(re.findall(r"(\w+):\s+(\d+)", answers[0]))
    reference = json.loads(row["reference"])
    expected = {reference[f"emotion{i}"]: reference[f"emotion{i}_score"] for i in range(1, 5)}
    if set(rated) != set(expected):
        return {"eqbench": 0.0, "parseable": 0.0}
    distance = sum(_scaled(abs(float(rated[name]) - float(expected[name]))) for name in expected)
    return {"eqbench": 10 * (10 - ADJUSTMENT * distance), "parseable": 1.0}


def _scaled(difference: float) -> float:
    """Return the weighted difference of two ratings. Differences up to 5 pass through a sigmoid."""
    if difference == 0 or difference > 5:
        return difference
    return 6.5 / (1 + math.exp(-1.2 * (difference - 4)))
