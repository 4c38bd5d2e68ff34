"""What judgements of two models come to: how often the first is preferred, and how fair it was."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama_cpt.evaluation.judge.verdicts import AnswerPair, Judgement, is_same
from llama_cpt.evaluation.paired import LEVEL, ratio_intervals


@dataclass(frozen=True)
class WinRate:
    """The first model against the second."""

    models: tuple[str, str]
    judge: str
    prompts: int
    """With all their verdicts, or with answers that do not differ."""
    wins: int
    """Prompts on which the first model is preferred, in the mean of both orders."""
    losses: int
    same: int
    """Prompts that both answer alike; ties, as are those on which the orders disagree."""
    rate: float
    """The first model's: a win is 1, a tie a half, a loss 0; the mean over prompts."""
    interval: tuple[float, float]
    disagreements: int
    """Prompts on which the verdict follows the place: another answer wins in each order."""
    shown_first: float
    """How often the answer shown first is preferred, a tie a half."""
    shown_first_interval: tuple[float, float]
    without_verdict: int
    """Replies that said nothing; their prompts do not count."""
    unjudged: int
    """Prompts without all their verdicts."""

    @property
    def finding(self) -> str:
        """In words."""
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
    """From the judgements of one judge on ``pairs``; prompts are resampled, with both orders."""
    of_pair: dict[str, dict[bool, Judgement]] = {pair.id: {} for pair in pairs}
    for judgement in judgements:
        if judgement.verdict != "none":
            of_pair[judgement.pair][judgement.swapped] = judgement
    whole = [list(found.values()) for found in of_pair.values() if len(found) == 1 + both_orders]
    same = sum(map(is_same, pairs))
    points = [float(np.mean([j.points for j in found])) for found in whole] + [0.5] * same
    first_shown = [float(np.mean([_first_shown(j) for j in found])) for found in whole]
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
            len(found) == 2 and "tie" != found[0].verdict == found[1].verdict for found in whole
        ),
        shown_first=float(np.mean(first_shown)) if first_shown else 0.5,
        shown_first_interval=_interval(first_shown),
        without_verdict=sum(judgement.verdict == "none" for judgement in judgements),
        unjudged=len(pairs) - len(points),
    )


def summary_lines(found: WinRate) -> list[str]:
    """The outcome in sentences."""
    ties = found.prompts - found.wins - found.losses
    lines = [
        f"{found.models[0]} against {found.models[1]}, judged by {found.judge}: {found.finding}.",
        f"Win rate of {found.models[0]}: {found.rate:.1%} ({_span(found.interval)}, 95 %) over "
        f"{found.prompts} prompts: {found.wins} wins, {ties} ties, {found.losses} losses.",
    ]
    if found.same:
        lines.append(f"{found.same} of the ties are answers that do not differ; nobody was asked.")
    low, high = found.shown_first_interval
    if low > 0.5 or high < 0.5:
        place = "first" if low > 0.5 else "second"
        lines.append(
            f"The judge favours the answer that is shown {place}: the one shown first is preferred "
            f"in {found.shown_first:.0%} ({_span((low, high))}) of the verdicts; in "
            f"{found.disagreements} prompts the order alone decided, which counts as a tie."
        )
    if found.unjudged:
        lines.append(
            f"{found.unjudged} prompts do not count: not judged in full "
            f"({found.without_verdict} replies held no verdict)."
        )
    return lines


def _span(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"


def _first_shown(judgement: Judgement) -> float:
    return {"a": 1.0, "tie": 0.5, "b": 0.0}[judgement.verdict]


def _interval(points: Sequence[float]) -> tuple[float, float]:
    """95 % of a mean of values in [0, 1].

    A win and a loss are added: where no prompts differ, there is an interval all the same.
    """
    change = np.array([[*points, 0.0, 1.0]])
    low, high = ratio_intervals(change, np.ones_like(change), [LEVEL])[0, 0]
    return max(0.0, float(low)), min(1.0, float(high))
