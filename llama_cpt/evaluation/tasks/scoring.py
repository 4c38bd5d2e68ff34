"""Scoring of the answers to HumanEval and EQ-Bench."""

from collections.abc import Sequence
import json
import math
import re
from typing import Any

from llama_cpt.evaluation.sandbox.sandbox import run_python

ADJUSTMENT = 0.7477
"""Factor that multiplies the distance from the reference, so that random answers score 0."""
LEAST_PARSEABLE = 0.83
"""Minimum share of parseable answers for which the authors of EQ-Bench define a score."""


def score_humaneval(row: dict[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """Return the metric ``pass@1``: 1 if the answer passes the tests in the sandbox, else 0."""
    program = f"{row['prompt']}{answers[0]}\n{row['test']}\ncheck({row['entry_point']})\n"
    return {"pass@1": float(run_python(program).status == "passed")}


def score_eq_bench(row: dict[str, Any], answers: Sequence[str]) -> dict[str, float]:
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
