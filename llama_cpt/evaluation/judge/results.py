"""The win rate of two models from judgements of their answers, and the judge's position bias."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama_cpt.evaluation.judge.verdicts import AnswerPair, Judgement, is_same
from llama_cpt.evaluation.paired import LEVEL, ratio_intervals


@dataclass(frozen=True)
class WinRate:
    """The win rate of the first model against the second."""

    models: tuple[str, str]
    judge: str
    prompts: int
    """Prompts that count: those with all their verdicts, or with equal answers."""
    wins: int
    """Prompts on which the first model is preferred, by the mean over the orders."""
    losses: int
    same: int
    """Prompts with equal answers, which are ties."""
    rate: float
    """Mean over prompts: a win of the first model is 1, a tie 0.5, a loss 0."""
    interval: tuple[float, float]
    disagreements: int
    """Prompts on which the answer at the same position wins in both orders, which are ties."""
    shown_first: float
    """Rate at which the answer shown first is preferred; a tie is 0.5."""
    shown_first_interval: tuple[float, float]
    without_verdict: int
    """Questions whose replies had no verdict; their prompts do not count."""
    unjudged: int
    """Prompts that do not count, since a verdict is missing."""

    @property
    def finding(self) -> str:
        """The conclusion from the interval of the win rate."""
        low, high = self.interval
        first, second = self.models
        if low > 0.5:
            return f"{first} is preferred to {second}"
        return f"{second} is preferred to {first}" if high < 0.5 else "not told apart"


def win_rate(
    models: tuple[str, str],
    judge: str,
    pairs: Sequence[AnswerPair],
    judgements: Sequence[Judgement],
    *,
    both_orders: bool,
) -> WinRate:
    """Compute the win rate from the judgements of one judge on ``pairs``.

    The bootstrap resamples prompts: both orders of a prompt stay together, since their verdicts are
    not independent.
    """
    by_pair: dict[str, dict[bool, Judgement]] = {pair.id: {} for pair in pairs}
    for judgement in judgements:
        if judgement.verdict != "none":
            by_pair[judgement.pair][judgement.swapped] = judgement
    complete = [list(found.values()) for found in by_pair.values() if len(found) == 1 + both_orders]
    same = sum(map(is_same, pairs))
    points = [float(np.mean([j.points for j in found])) for found in complete] + [0.5] * same
    first_shown = [float(np.mean([_first_shown(j) for j in found])) for found in complete]
    return WinRate(
        models=models,
        judge=judge,
        prompts=len(points),
        wins=sum(point > 0.5 for point in points),
        losses=sum(point < 0.5 for point in points),
        same=same,
        rate=float(np.mean(points)) if points else 0.5,
        interval=_interval(points),
        disagreements=sum(
            len(found) == 2 and "tie" != found[0].verdict == found[1].verdict for found in complete
        ),
        shown_first=float(np.mean(first_shown)) if first_shown else 0.5,
        shown_first_interval=_interval(first_shown),
        without_verdict=sum(judgement.verdict == "none" for judgement in judgements),
        unjudged=len(pairs) - len(points),
    )


def summary_lines(found: WinRate) -> list[str]:
    """Return the result in sentences."""
    ties = found.prompts - found.wins - found.losses
    lines = [
        f"{found.models[0]} against {found.models[1]}, judged by {found.judge}: {found.finding}.",
        f"Win rate of {found.models[0]}: {found.rate:.1%} ({_span(found.interval)}, 95 %) over "
        f"{found.prompts} prompts: {found.wins} wins, {ties} ties, {found.losses} losses.",
    ]
    if found.same:
        lines.append(f"{found.same} of the ties are equal answers, which were not judged.")
    low, high = found.shown_first_interval
    if low > 0.5 or high < 0.5:
        position = "first" if low > 0.5 else "second"
        lines.append(
            f"The judge favors the answer that is shown {position}: the one shown first is "
            f"preferred in {found.shown_first:.0%} ({_span((low, high))}) of the verdicts; on "
            f"{found.disagreements} prompts the order alone decided, which counts as a tie."
        )
    if found.unjudged:
        lines.append(
            f"{found.unjudged} prompts do not count: a verdict is missing "
            f"({found.without_verdict} questions got no verdict)."
        )
    return lines


def _span(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"


def _first_shown(judgement: Judgement) -> float:
    return {"a": 1.0, "tie": 0.5, "b": 0.0}[judgement.verdict]


def _interval(points: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of values in [0, 1].

    One win and one loss are added to the values, so that equal values have an interval of positive
    width: without them, 12 wins on 12 prompts would give the interval from 1 to 1.
    """
    change = np.array([[*points, 0.0, 1.0]])
    low, high = ratio_intervals(change, np.ones_like(change), [LEVEL])[0, 0]
    return max(0.0, float(low)), min(1.0, float(high))
