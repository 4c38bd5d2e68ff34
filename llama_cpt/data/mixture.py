"""The mixture: a closed-form map from a row index in the run to a corpus and a row of that corpus.

The additional-language mixture ratio (ALMR) is the share of training tokens that come from the
``additional`` group of corpora. All rows have the same length, so the ALMR is also a share of rows.
Let A(i) be the exact sum of the ALMR over the rows before row i. Row i is from the additional group
if floor(A(i + 1)) - floor(A(i)) = 1. The first i rows therefore contain floor(A(i)) additional
rows. This number is less than one row below the target A(i).

Within a group, the same rule selects the rows of the first corpus, then the rows of the second
corpus among the remaining rows, and so on. For any number of rows of the group, the number of rows
from the first or the second corpus differs from its exact value by less than one row, and the
number from corpus k > 2 by less than k - 1 rows. Proof: let e_k be the number of rows that
remain after corpora 1 to k - 1 have received their rows, minus the exact number of rows that belong
to corpora k, k + 1, and so on. Corpus k receives the fraction s_k of the remaining rows, rounded
down by f_k < 1. The error of corpus k is e_k s_k - f_k, and e_(k+1) = e_k (1 - s_k) + f_k. Because
e_1 = 0, 0 <= e_k < k - 1 for k > 1. (It would not work to
apply the floor rule to the cumulative shares: the sum for corpus 1 can pass an integer at a row
at which the sum for corpora 1 and 2 does not.)
"""

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
import math

from jaxtyping import Int32, Int64
import numpy as np

from llama_cpt.config.schema import CorpusConfig, DataConfig
from llama_cpt.data.permutation import epoch_keys, permute, stream_key
from llama_cpt.runtime.errors import UserError

# More rows than any run has, and far below the maximum of int64.
_MOST_ROWS = 2**60


@dataclass(frozen=True)
class MixtureCorpus:
    """Name, number of rows and weight of a corpus in the mixture."""

    name: str
    rows: int
    weight: Fraction
    """Weight relative to the other corpora of the group; weights need not sum to 1."""


@dataclass(frozen=True)
class Mixture:
    """The mixture of a run. Corpus indices refer to ``additional + original``."""

    stages: tuple[tuple[int, Fraction], ...]
    """``((first_row, almr), ...)`` in the order of the rows; the first stage starts at row 0."""
    additional: tuple[MixtureCorpus, ...]
    original: tuple[MixtureCorpus, ...]
    seed: int

    def __post_init__(self) -> None:
        """Raise UserError if a corpus has no rows."""
        for corpus in self.corpora:
            if corpus.rows < 1:
                raise UserError(
                    f"data: corpus {corpus.name!r} has no rows; add text, set a smaller "
                    "data.sequence_length, or remove it."
                )

    @property
    def corpora(self) -> tuple[MixtureCorpus, ...]:
        """All corpora, in the order of their indices."""
        return self.additional + self.original

    def locate(
        self, rows: Int64[np.ndarray, " n"]
    ) -> tuple[Int32[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Return the corpus index and the row index within the corpus for each row of the run."""
        corpus, index = self.positions(rows)
        size = self._sizes[corpus]
        epoch, within = np.divmod(index, size)
        return corpus, permute(within, size, epoch_keys(self._keys[corpus], epoch))

    def positions(
        self, rows: Int64[np.ndarray, " n"]
    ) -> tuple[Int32[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Return the corpus index and a position for each row of the run in ``rows``.

        The position of a row is the number of earlier rows of the run, in all epochs, that come
        from the same corpus.
        """
        before = self._added_before(rows)
        added = self._added_before(rows + 1) > before
        corpus, index = np.empty(rows.shape, np.int32), np.empty(rows.shape, np.int64)
        corpus[added], index[added] = _split(before[added], self.additional)
        corpus[~added], index[~added] = _split((rows - before)[~added], self.original)
        corpus[~added] += len(self.additional)
        return corpus, index

    def row_counts(self, num_rows: int) -> tuple[int, ...]:
        """Return the number of rows of each corpus among the run's first ``num_rows`` rows."""
        added = self._added(num_rows)
        return (
            *_group_counts(added, self.additional),
            *_group_counts(num_rows - added, self.original),
        )

    def epochs(self, num_rows: int) -> tuple[Fraction, ...]:
        """Return the number of epochs over each corpus in the run's first ``num_rows`` rows."""
        counts = self.row_counts(num_rows)
        return tuple(Fraction(n, c.rows) for n, c in zip(counts, self.corpora, strict=True))

    def target_almr(self, num_rows: int) -> Fraction:
        """Return the mean configured ALMR of the first ``num_rows`` rows; ``num_rows`` >= 1."""
        ends = [start for start, _ in self.stages[1:]] + [num_rows]
        spans = zip(self.stages, ends, strict=True)
        return sum(
            (almr * max(min(end, num_rows) - start, 0) for (start, almr), end in spans),
            Fraction(0),
        ) / Fraction(num_rows)

    def realized_almr(self, num_rows: int) -> Fraction:
        """Return the share of additional rows in the first ``num_rows`` rows; ``num_rows`` >= 1."""
        return Fraction(self._added(num_rows), num_rows)

    def max_rows(self, max_epochs: float) -> int:
        """Return the maximum number of rows that need at most ``max_epochs`` epochs of a corpus."""
        bound = Fraction(str(max_epochs))
        longer = bisect.bisect_left(
            range(_MOST_ROWS), True, key=lambda num_rows: max(self.epochs(num_rows)) > bound
        )
        return longer - 1

    def check_epochs(self, num_rows: int, max_epochs: float) -> None:
        """Raise UserError if ``num_rows`` rows need more than ``max_epochs`` epochs of a corpus."""
        epochs, corpus = max(
            zip(self.epochs(num_rows), self.corpora, strict=True), key=lambda pair: pair[0]
        )
        if epochs > Fraction(str(max_epochs)):
            raise UserError(
                f"data: the run's {num_rows} rows need {float(epochs):.2f} epochs over corpus "
                f"{corpus.name!r} ({corpus.rows} rows), but data.max_epochs is {max_epochs:g}; "
                f"this mixture allows {self.max_rows(max_epochs)} rows. Set fewer num_steps, "
                "add text, change data.almr or the weights, or raise data.max_epochs."
            )

    def _added(self, num_rows: int) -> int:
        """Return the number of additional rows among the first ``num_rows`` rows."""
        return int(self._added_before(np.array([num_rows], np.int64))[0])

    def _added_before(self, rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Return floor(A(row)) for each row, the number of additional rows before the row."""
        added = np.empty_like(rows)
        stage = np.searchsorted([start for start, _ in self.stages], rows, side="right") - 1
        for number in np.unique(stage):
            start, almr = self.stages[number]
            whole, rest = self._sums_at_stages[number]
            here = stage == number
            added[here] = whole + _floor_line(rows[here] - start, almr, rest)
        return added

    @cached_property
    def _sums_at_stages(self) -> tuple[tuple[int, Fraction], ...]:
        """Integer part and fractional part of A at the first row of each stage."""
        sums = [
            self.target_almr(start) * start if start else Fraction(0) for start, _ in self.stages
        ]
        return tuple((math.floor(total), total - math.floor(total)) for total in sums)

    @cached_property
    def _sizes(self) -> np.ndarray:
        """Number of rows of each corpus, int64 (corpora,)."""
        return np.array([corpus.rows for corpus in self.corpora], np.int64)

    @cached_property
    def _keys(self) -> np.ndarray:
        """Key of each corpus, (corpora,), from which ``epoch_keys`` computes permutation keys."""
        return np.array([stream_key(self.seed, corpus.name) for corpus in self.corpora], np.uint64)


def build_mixture(
    config: DataConfig, rows_of_corpora: Mapping[str, int], *, seed: int, global_batch_size: int
) -> Mixture:
    """Return the mixture of the corpora in ``config`` for a run.

    ``rows_of_corpora`` maps the name of a corpus to its number of rows. Raises UserError if a
    corpus has no rows.
    """

    def group(corpora: tuple[CorpusConfig, ...]) -> tuple[MixtureCorpus, ...]:
        return tuple(
            MixtureCorpus(c.name, rows_of_corpora[c.name], Fraction(str(c.weight))) for c in corpora
        )

    stages = tuple((step * global_batch_size, almr) for step, almr in config.almr_stages())
    return Mixture(stages, group(config.additional), group(config.original), seed)


def _shares(corpora: tuple[MixtureCorpus, ...]) -> list[Fraction]:
    """Return, for each corpus, its share of the rows that the preceding corpora do not receive."""
    weights = [corpus.weight for corpus in corpora]
    return [weight / sum(weights[k:]) for k, weight in enumerate(weights)]


def _split(
    index: Int64[np.ndarray, " n"], corpora: tuple[MixtureCorpus, ...]
) -> tuple[Int32[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Return the corpus of each row of a group and the row's index among the rows of that corpus.

    ``index`` contains the indices of the rows among the rows of the group.
    """
    member, own = np.zeros(index.shape, np.int32), np.zeros(index.shape, np.int64)
    left = np.arange(len(index))
    for number, share in enumerate(_shares(corpora)):
        before = _floor_line(index, share)
        mine = _floor_line(index + 1, share) > before
        member[left[mine]] = number
        own[left[mine]] = before[mine]
        left, index = left[~mine], (index - before)[~mine]
    return member, own


def _group_counts(index: int, corpora: tuple[MixtureCorpus, ...]) -> list[int]:
    """Return the number of rows of each corpus among the first ``index`` rows of the group."""
    counts = []
    for share in _shares(corpora):
        counts.append(math.floor(index * share))
        index -= counts[-1]
    return counts


def _floor_line(
    index: Int64[np.ndarray, " n"], slope: Fraction, offset: Fraction = Fraction(0)
) -> Int64[np.ndarray, " n"]:
    """Return floor(index * slope + offset) exactly, for slope in [0, 1] and offset in [0, 1)."""
    denominator = math.lcm(slope.denominator, offset.denominator)
    rise, start = int(slope * denominator), int(offset * denominator)
    if denominator >= 2**31:  # Products could overflow int64; Python integers are slow but exact.
        return ((index.astype(object) * rise + start) // denominator).astype(np.int64)
    whole, part = np.divmod(index, denominator)
    return whole * rise + (part * rise + start) // denominator
