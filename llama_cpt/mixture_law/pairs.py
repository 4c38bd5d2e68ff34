"""Several pairs of languages: whether one optimum serves all."""

import numpy as np

from llama_cpt.mixture_law.intervals import Interval
from llama_cpt.mixture_law.law import Law, PairOptimum


def compare_pairs(laws: dict[str, Law]) -> tuple[tuple[PairOptimum, ...], str]:
    """Each pair's optimum against the first pair's, and a sentence on them all.

    Pairs without a recommendation come last, so that the first has one if any has.
    """
    laws = dict(sorted(laws.items(), key=lambda item: item[1].recommendation is None))
    first = next(iter(laws.values()))
    rows = tuple(_row(pair, law, first) for pair, law in laws.items())
    refused = [row.pair for row in rows if row.refusal]
    known = rows[: len(rows) - len(refused)]
    unknown = f"there is no recommendation for {', '.join(refused)}."
    if len(known) < 2:
        return rows, f"Not known: {unknown}"
    told = _compared(known)
    return rows, f"{told} Of the others it is not known: {unknown}" if refused else told


def _compared(rows: tuple[PairOptimum, ...]) -> str:
    apart = [
        row.pair
        for row in rows[1:]
        if not (_holds_zero(row.almr_difference) and _holds_zero(row.decades_difference))
    ]
    if apart:
        return f"No: the optimum of {', '.join(apart)} is another than that of {rows[0].pair}."
    return "Yes, as far as the intervals tell: none of the differences excludes 0."


def _row(pair: str, law: Law, first: Law) -> PairOptimum:
    here, there = law.recommendation, first.recommendation
    if here is None:
        return PairOptimum(pair, None, None, None, None, law.refusal)
    rate = Interval(*np.log10(here.learning_rate))
    return PairOptimum(
        pair=pair,
        almr=here.almr,
        learning_rate=here.learning_rate,
        almr_difference=_difference(here.almr, there.almr) if there else None,
        decades_difference=(
            _difference(rate, Interval(*np.log10(there.learning_rate))) if there else None
        ),
        refusal=None,
    )


def _difference(one: Interval, other: Interval) -> Interval:
    """Of independent values: half widths in quadrature."""
    value = one.value - other.value
    down = np.hypot(one.value - one.low, other.high - other.value)
    up = np.hypot(one.high - one.value, other.value - other.low)
    return Interval(value, value - down, value + up)


def _holds_zero(difference: Interval | None) -> bool:
    return difference is not None and bool(difference.low <= 0 <= difference.high)
