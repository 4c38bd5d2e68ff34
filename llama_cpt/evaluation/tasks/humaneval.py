"""HumanEval (arXiv 2107.03374): whether a completed function passes its tests."""

from collections.abc import Sequence
from typing import Any

from llama_cpt.evaluation.sandbox.sandbox import run_python


def passes(row: dict[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """``pass@1`` of one answer, run within the limits of ``sandbox``."""
    program = f"{row['prompt']}{answers[0]}\n{row['test']}\ncheck({row['entry_point']})\n"
    return {"pass@1": float(run_python(program).status == "passed")}
