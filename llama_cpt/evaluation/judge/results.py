"""The win rate between two models, computed from judgments, and the judge's position bias."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama_cpt.evaluation.judge.verdicts import AnswerPair, Judgment, is_same
from llama_cpt.evaluation.paired import LEVEL, ratio_intervals


@dataclass(frozen=True)
class WinRate:
    """The win rate of the first model against the second, according to one judge."""

    models: tuple[str, str]
    judge: str
    prompts: int
    """Number of prompts in the result: prompts with a verdict for every requested order of the two
    answers, and prompts to which both models gave the same answer."""
    wins: int
    """Number of prompts with a mean of the first model's points above 0.5.

    The mean is over the judged orders of the two answers.
    """
    losses: int
    """Number of prompts with a mean of the first model's points below 0.5.

    The mean is over the judged orders of the two answers.
    """
    same: int
    """Number of prompts to which both models gave equal answers. These prompts count as ties."""
    rate: float
    """Points of the first model, averaged over prompts.

    A verdict gives 1 point for a win, 0.5 for a tie and 0 for a loss.
    """
    interval: tuple[float, float]
    """The 95 % bootstrap interval of ``rate``."""
    disagreements: int
    """Number of prompts for which the answer in the same position wins in both orders.

    These prompts count as ties.
    """
    shown_first: float
    """Share of verdicts for the answer that is shown first; a tie counts as half a verdict."""
    shown_first_interval: tuple[float, float]
    """The 95 % bootstrap interval of ``shown_first``."""
    without_verdict: int
    """Number of questions (pair of answers, order) for which no reply contained a verdict.

    ``prompts`` does not include the prompts of these questions.
    """
    unjudged: int
    """Number of prompts that ``prompts`` does not include, because a verdict is missing."""

    @property
    def finding(self) -> str:
        """Text that states which model is preferred, such as "A is preferred to B".

        The text is "no significant difference" if the interval of the win rate contains 0.5.
        """
        low, high = self.interval
        first, second = self.models
        if low > 0.5:
            return f"{first} is preferred to {second}"
        return f"{second} is preferred to {first}" if high < 0.5 else "no significant difference"


def win_rate(
    models: tuple[str, str],
    judge: str,
    pairs: Sequence[AnswerPair],
    judgments: Sequence[Judgment],
    *,
    both_orders: bool,
) -> WinRate:
    """Compute the win rate from one judge's judgments of ``pairs``.

    The bootstrap resamples prompts, not verdicts, because the verdicts on the two orders of a
    prompt are not independent.
    """
    by_pair: dict[str, dict[bool, Judgment]] = {pair.id: {} for pair in pairs}
    for judgment in judgments:
        if judgment.verdict != "none":
            by_pair[judgment.pair][judgment.swapped] = judgment
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
        without_verdict=sum(judgment.verdict == "none" for judgment in judgments),
        unjudged=len(pairs) - len(points),
    )


def summary_lines(found: WinRate) -> list[str]:
    """Return sentences that describe the win rate ``found``."""
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
            f"The judge favors the answer that is shown {position}: {found.shown_first:.0%} "
            f"({_span((low, high))}) of the verdicts are for the answer that is shown first. On "
            f"{found.disagreements} prompts, the judge chose the same position in both orders; "
            "these prompts count as ties."
        )
    if found.unjudged:
        lines.append(
            f"{found.unjudged} prompts do not count, because a verdict is missing "
            f"(no verdict in the replies to {found.without_verdict} questions)."
        )
    return lines


def _span(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"


def _first_shown(judgment: Judgment) -> float:
    return {"a": 1.0, "tie": 0.5, "b": 0.0}[judgment.verdict]


def _interval(points: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of values in [0, 1].

    One win and one loss are added to the values, so that the interval of equal values has a
    positive width. Without these values, 12 wins on 12 prompts would give the interval from 1 to 1.
    """
    change = np.array([[*points, 0.0, 1.0]])
    low, high = ratio_intervals(change, np.ones_like(change), [LEVEL])[0, 0]
    return max(0.0, float(low)), min(1.0, float(high))
