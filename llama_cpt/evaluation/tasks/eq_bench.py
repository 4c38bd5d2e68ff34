"""Scoring of EQ-Bench (arXiv 2312.06281, v2 of EQ-bench/EQ-Bench): ratings of four emotions."""

from collections.abc import Sequence
import json
import math
import re
from typing import Any

ADJUSTMENT = 0.7477
"""Factor with which random answers score 0."""
LEAST_PARSEABLE = 0.83
"""Minimum share of parseable answers; with fewer, the benchmark has no published score."""


def closeness(row: dict[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """Return ``eqbench``, 100 for the reference and 0 if not parseable, and ``parseable``."""
    rated = dict(re.findall(r"(\w+):\s+(\d+)", answers[0]))
    reference = json.loads(row["reference"])
    expected = {reference[f"emotion{i}"]: reference[f"emotion{i}_score"] for i in range(1, 5)}
    if set(rated) != set(expected):
        return {"eqbench": 0.0, "parseable": 0.0}
    distance = sum(_scaled(abs(float(rated[name]) - float(expected[name]))) for name in expected)
    return {"eqbench": 10 * (10 - ADJUSTMENT * distance), "parseable": 1.0}


def _scaled(difference: float) -> float:
    """Scale a difference: up to 5 by a sigmoid, so that small ones count less."""
    if difference == 0 or difference > 5:
        return difference
    return 6.5 / (1 + math.exp(-1.2 * (difference - 4)))
