"""The whole of it: points and a goal to a law."""

from collections.abc import Mapping

from llama_cpt.mixture_law.goal import Goal
from llama_cpt.mixture_law.law import Law
from llama_cpt.mixture_law.points import Points


def analyse(
    points: Points,
    *,
    goal: Goal,
    target_parameters: float | None = None,
    target_tokens: float | None = None,
    target_base: Mapping[str, float] | None = None,
    next_runs: int = 0,
    seed: int = 0,
) -> Law:
    """Fits every form, chooses by held-out error, recommends or refuses.

    ``target_base`` is the loss of the target's base by group, where it is known.
    """
    raise NotImplementedError
