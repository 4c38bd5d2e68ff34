"""The mixture: a closed-form map from a row index in the run to a corpus and a row of that corpus.

The additional-language mixture ratio (ALMR) is the share of training tokens that come from the
``additional`` group of corpora. All rows have the same length, so the ALMR is also a share of rows.
Let A(i) be the exact sum of the ALMR over the rows before row i. Row i is from the additional group
if floor(A(i + 1)) - floor(A(i)) = 1. The first i rows therefore contain floor(A(i)) additional
rows. This number is less than one row below the target A(i).

Within a group, the same rule selects the rows of the first corpus, then the rows of the second
corpus among the remaining rows, and so on. Corpus k receives the fraction s_k of the rows that
corpora 1 to k - 1 leave: its weight divided by the sum of the weights of corpora k, k + 1, and so
on. If the weights change during the run, s_k changes at the first row of the group after the given
step, and the sum of s_k over the rows is continued across the change. For any number of rows of the
group, the number of rows from corpus k differs from its exact value by less than one row for k = 1
and by less than k - 1 rows for k > 1. After m changes of the weights, the difference is less than
one row for k = 1 and, in a group of two corpora, for k = 2; it is less than 1 + (m + 1)(k - 1) rows
for all other corpora.

Proof: let e_k be the number of rows that remain after corpora 1 to k - 1 have received their rows,
minus the exact number of rows that belong to corpora k, k + 1, and so on. Corpus k receives the sum
of s_k over the remaining rows, rounded down by f_k < 1. Without changes, the error of corpus k is
e_k s_k - f_k, and e_(k+1) = e_k (1 - s_k) + f_k. Because e_1 = 0, 0 <= e_k < k - 1 for k > 1. With
changes, let d_k be the increase of e_k within one stage of constant weights, and g_k the increase
of f_k. Then d_(k+1) = d_k (1 - s_k) + g_k, so |d_k| < k - 1 for k > 1, because d_1 = 0 and
|g_k| < 1. The error of corpus k is the sum of d_k s_k over the stages, minus f_k. It is -f_1 for
corpus 1, and less than 1 + (m + 1)(k - 1) in magnitude for k > 1. The last of two corpora has the
error f_1. A corpus with weight 0 has s_k = 0, so its sum does not increase and it receives no row.
(It would not work to apply the floor rule to the cumulative shares: the sum for corpus 1 can pass
an integer at a row at which the sum for corpora 1 and 2 does not.)
"""

import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
import itertools
import math

from jaxtyping import Int32, Int64
import numpy as np

from llama_cpt.config.schema import CorpusConfig, DataConfig
from llama_cpt.config.stages import Stages, value_at
from llama_cpt.data.permutation import epoch_keys, permute, stream_key
from llama_cpt.runtime.errors import UserError

# More rows than any run has, and far below the maximum of int64.
_MOST_ROWS = 2**60


@dataclass(frozen=True)
class MixtureCorpus:
    """Name, number of rows and weight of a corpus in the mixture."""

    name: str
    rows: int
    weights: Stages
    """``((first_row, weight), ...)`` in the order of the rows; the first stage starts at row 0 of
    the run. The weight is relative to the other corpora of the group; weights need not sum to 1."""


@dataclass(frozen=True)
class _StagedSum:
    """The sum of a share over all rows before a row; the share is constant within each stage."""

    starts: tuple[int, ...]
    """First row of each stage in ascending order, beginning with 0. A stage can have no rows."""
    shares: tuple[Fraction, ...]
    """Share of each stage, in [0, 1]."""

    def at(self, row: int) -> Fraction:
        """Return the exact sum over the rows before ``row``."""
        stage = bisect.bisect_right(self.starts, row) - 1
        return self._sums[stage] + (row - self.starts[stage]) * self.shares[stage]

    def floor(self, rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Return the exact sum over the rows before each of ``rows``, rounded down."""
        floors = np.empty_like(rows)
        stages = np.searchsorted(self.starts, rows, side="right") - 1
        for stage in np.unique(stages):
            whole = math.floor(self._sums[stage])
            here, rest = stages == stage, self._sums[stage] - whole
            line = _floor_line(rows[here] - self.starts[stage], self.shares[stage], rest)
            floors[here] = whole + line
        return floors

    @cached_property
    def _sums(self) -> tuple[Fraction, ...]:
        """Sum at the first row of each stage."""
        sums = [Fraction(0)]
        for (start, end), share in zip(itertools.pairwise(self.starts), self.shares, strict=False):
            sums.append(sums[-1] + (end - start) * share)
        return tuple(sums)


@dataclass(frozen=True)
class Mixture:
    """The mixture of a run. Corpus indices refer to ``additional + original``."""

    stages: Stages
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
        before = self._added.floor(rows)
        added = self._added.floor(rows + 1) > before
        additional, original = self._sums_of_groups
        corpus, index = np.empty(rows.shape, np.int32), np.empty(rows.shape, np.int64)
        corpus[added], index[added] = _split(before[added], additional)
        corpus[~added], index[~added] = _split((rows - before)[~added], original)
        corpus[~added] += len(self.additional)
        return corpus, index

    def row_counts(self, num_rows: int) -> tuple[int, ...]:
        """Return the number of rows of each corpus among the run's first ``num_rows`` rows."""
        added = math.floor(self._added.at(num_rows))
        additional, original = self._sums_of_groups
        return (*_group_counts(added, additional), *_group_counts(num_rows - added, original))

    def epochs(self, num_rows: int) -> tuple[Fraction, ...]:
        """Return the number of epochs over each corpus in the run's first ``num_rows`` rows."""
        counts = self.row_counts(num_rows)
        return tuple(Fraction(n, c.rows) for n, c in zip(counts, self.corpora, strict=True))

    def target_almr(self, num_rows: int) -> Fraction:
        """Return the mean configured ALMR of the first ``num_rows`` rows; ``num_rows`` >= 1."""
        return self._added.at(num_rows) / num_rows

    def realized_almr(self, num_rows: int) -> Fraction:
        """Return the share of additional rows in the first ``num_rows`` rows; ``num_rows`` >= 1."""
        return Fraction(math.floor(self._added.at(num_rows)), num_rows)

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

    @cached_property
    def _added(self) -> _StagedSum:
        """The sum A of the ALMR; A rounded down is the number of additional rows before a row."""
        starts, almrs = zip(*self.stages, strict=True)
        return _StagedSum(starts, almrs)

    @cached_property
    def _sums_of_groups(self) -> tuple[tuple[_StagedSum, ...], tuple[_StagedSum, ...]]:
        """The sums of the shares of the additional and of the original corpora."""

        def added(row: int) -> int:
            return math.floor(self._added.at(row))

        return (
            _sums_of_shares(self.additional, added),
            _sums_of_shares(self.original, lambda row: row - added(row)),
        )

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

    def in_rows(stages: Stages) -> Stages:
        return tuple((step * global_batch_size, value) for step, value in stages)

    def group(corpora: tuple[CorpusConfig, ...]) -> tuple[MixtureCorpus, ...]:
        return tuple(
            MixtureCorpus(c.name, rows_of_corpora[c.name], in_rows(c.weight_stages()))
            for c in corpora
        )

    additional, original = group(config.additional), group(config.original)
    return Mixture(in_rows(config.almr_stages()), additional, original, seed)


def _sums_of_shares(
    corpora: tuple[MixtureCorpus, ...], group_rows: Callable[[int], int]
) -> tuple[_StagedSum, ...]:
    """Return, for each corpus, the sum of its share of the rows that the preceding corpora leave.

    The sum is a function of the index of a row among these rows. ``group_rows(row)`` is the number
    of rows of the group before row ``row`` of the run.
    """
    starts = sorted({start for corpus in corpora for start, _ in corpus.weights})
    weights = [[value_at(corpus.weights, start) for corpus in corpora] for start in starts]
    firsts = [group_rows(start) for start in starts]
    sums = []
    for k in range(len(corpora)):
        # If corpora k, k + 1, ... have weight 0 in a stage, the preceding corpora leave no row.
        shares = [stage[k] / (sum(stage[k:]) or Fraction(1)) for stage in weights]
        sums.append(_StagedSum(tuple(firsts), tuple(shares)))
        firsts = [first - math.floor(sums[-1].at(first)) for first in firsts]
    return tuple(sums)


def _split(
    index: Int64[np.ndarray, " n"], sums: tuple[_StagedSum, ...]
) -> tuple[Int32[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Return the corpus of each row of a group and the row's index among the rows of that corpus.

    ``index`` contains the indices of the rows among the rows of the group.
    """
    member, own = np.zeros(index.shape, np.int32), np.zeros(index.shape, np.int64)
    left = np.arange(len(index))
    for number, staged in enumerate(sums):
        before = staged.floor(index)
        mine = staged.floor(index + 1) > before
        member[left[mine]] = number
        own[left[mine]] = before[mine]
        left, index = left[~mine], (index - before)[~mine]
    return member, own


def _group_counts(index: int, sums: tuple[_StagedSum, ...]) -> list[int]:
    """Return the number of rows of each corpus among the first ``index`` rows of the group."""
    counts = []
    for staged in sums:
        counts.append(math.floor(staged.at(index)))
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
