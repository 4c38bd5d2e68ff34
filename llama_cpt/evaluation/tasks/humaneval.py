"""Scoring of HumanEval (arXiv 2107.03374), in which a completed function must pass tests."""

from collections.abc import Sequence
from typing import Any

from llama_cpt.evaluation.sandbox.sandbox import run_python


def passes(row: dict[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """Return the metric ``pass@1``: 1 if the answer passes the tests in the sandbox, else 0."""
    program = f"{row['prompt']}{answers[0]}\n{row['test']}\ncheck({row['entry_point']})\n"
    return {"pass@1": float(run_python(program).status == "passed")}
