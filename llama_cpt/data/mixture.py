"""The mixture: a closed-form map from a row number of the run to a corpus and one of its rows.

ALMR, the additional-language mixture ratio, is the share of training tokens in the added language;
all rows have the same length, so it is also a share of rows. Let A(i) be the exact sum of the ALMR
over the rows before i. Row i is additional if floor(A(i + 1)) - floor(A(i)) = 1, which keeps every
prefix of the run within one row of the target. Within a group, the same rule splits the first
corpus from the rest by the group's index, the second from the remainder by the remainder's index,
and so on: corpus k of a group is within k + 1 rows of its share of the group's rows at every
prefix. (A single floor rule over all weights fails for three corpora.)
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
from llama_cpt.data.permutation import pass_keys, permute, stream_key
from llama_cpt.runtime.errors import UserError

# Longer than any run, and far below the limit of int64.
_MOST_ROWS = 2**60


@dataclass(frozen=True)
class MixtureCorpus:
    """A corpus of the mixture: name, number of rows and weight."""

    name: str
    rows: int
    weight: Fraction
    """Weight of the corpus relative to the other corpora of its group."""


@dataclass(frozen=True)
class Mixture:
    """The mixture of a run; corpora are numbered ``additional`` first, then ``original``."""

    stages: tuple[tuple[int, Fraction], ...]
    """``((first_row, almr), ...)``; the first stage starts at row 0."""
    additional: tuple[MixtureCorpus, ...]
    original: tuple[MixtureCorpus, ...]
    seed: int

    def __post_init__(self) -> None:
        """Raise UserError for a corpus without rows."""
        for corpus in self.corpora:
            if corpus.rows < 1:
                raise UserError(
                    f"data: corpus {corpus.name!r} has no rows; add text, set a smaller "
                    "data.sequence_length, or remove it."
                )

    @property
    def corpora(self) -> tuple[MixtureCorpus, ...]:
        """All corpora in the order of their numbers."""
        return self.additional + self.original

    def locate(
        self, rows: Int64[np.ndarray, " n"]
    ) -> tuple[Int32[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Return the corpus number of each of the run's ``rows``, and the row in that corpus."""
        corpus, index = self.positions(rows)
        size = self._sizes[corpus]
        number, within = np.divmod(index, size)
        return corpus, permute(within, size, pass_keys(self._keys[corpus], number))

    def positions(
        self, rows: Int64[np.ndarray, " n"]
    ) -> tuple[Int32[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Return the corpus number of each of the run's ``rows``, and its index in that corpus.

        The index counts the rows of that corpus before it in the run, over all epochs.
        """
        before = self._added_before(rows)
        added = self._added_before(rows + 1) > before
        corpus, index = np.empty(rows.shape, np.int32), np.empty(rows.shape, np.int64)
        corpus[added], index[added] = _split(before[added], self.additional)
        corpus[~added], index[~added] = _split((rows - before)[~added], self.original)
        corpus[~added] += len(self.additional)
        return corpus, index

    def row_counts(self, num_rows: int) -> tuple[int, ...]:
        """Return the number of rows of each corpus among the run's first ``num_rows``."""
        added = self._added(num_rows)
        return (
            *_group_counts(added, self.additional),
            *_group_counts(num_rows - added, self.original),
        )

    def epochs(self, num_rows: int) -> tuple[Fraction, ...]:
        """Return the number of epochs over each corpus in the run's first ``num_rows``."""
        counts = self.row_counts(num_rows)
        return tuple(Fraction(n, c.rows) for n, c in zip(counts, self.corpora, strict=True))

    def target_almr(self, num_rows: int) -> Fraction:
        """Return the mean ALMR of the stages over the first ``num_rows`` (at least 1)."""
        ends = [start for start, _ in self.stages[1:]] + [num_rows]
        spans = zip(self.stages, ends, strict=True)
        return sum(
            (almr * max(min(end, num_rows) - start, 0) for (start, almr), end in spans),
            Fraction(0),
        ) / Fraction(num_rows)

    def realized_almr(self, num_rows: int) -> Fraction:
        """Return the share of additional rows in the first ``num_rows`` (at least 1)."""
        return Fraction(self._added(num_rows), num_rows)

    def max_rows(self, max_epochs: float) -> int:
        """Return the rows of the longest run with at most ``max_epochs`` epochs of any corpus."""
        bound = Fraction(str(max_epochs))
        longer = bisect.bisect_left(
            range(_MOST_ROWS), True, key=lambda num_rows: max(self.epochs(num_rows)) > bound
        )
        return longer - 1

    def check_epochs(self, num_rows: int, max_epochs: float) -> None:
        """Raise UserError if a run of ``num_rows`` needs more than ``max_epochs`` over a corpus."""
        epochs, corpus = max(
            zip(self.epochs(num_rows), self.corpora, strict=True), key=lambda pair: pair[0]
        )
        if epochs > Fraction(str(max_epochs)):
            raise UserError(
                f"data: the run's {num_rows} rows need {float(epochs):.2f} epochs over corpus "
                f"{corpus.name!r} ({corpus.rows} rows), but data.max_epochs is {max_epochs:g}; "
                f"this mixture lasts for {self.max_rows(max_epochs)} rows. Set fewer num_steps, "
                "add text, change data.almr or the weights, or raise data.max_epochs."
            )

    def _added(self, num_rows: int) -> int:
        return int(self._added_before(np.array([num_rows], np.int64))[0])

    def _added_before(self, rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Return floor(A(row)) of each row."""
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
        """A at the first row of each stage, as integer part and fraction."""
        sums = [
            self.target_almr(start) * start if start else Fraction(0) for start, _ in self.stages
        ]
        return tuple((math.floor(total), total - math.floor(total)) for total in sums)

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.array([corpus.rows for corpus in self.corpora], np.int64)

    @cached_property
    def _keys(self) -> np.ndarray:
        return np.array([stream_key(self.seed, corpus.name) for corpus in self.corpora], np.uint64)


def build_mixture(
    config: DataConfig, rows_of_corpora: Mapping[str, int], *, seed: int, global_batch_size: int
) -> Mixture:
    """Return the mixture of a run; ``rows_of_corpora`` is the number of rows by corpus name.

    Raises UserError for a corpus without rows.
    """

    def group(corpora: tuple[CorpusConfig, ...]) -> tuple[MixtureCorpus, ...]:
        return tuple(
            MixtureCorpus(c.name, rows_of_corpora[c.name], Fraction(str(c.weight))) for c in corpora
        )

    stages = tuple((step * global_batch_size, almr) for step, almr in config.almr_stages())
    return Mixture(stages, group(config.additional), group(config.original), seed)


def _shares(corpora: tuple[MixtureCorpus, ...]) -> list[Fraction]:
    """Return each corpus's share of the rows that the corpora before it leave; the last is 1."""
    weights = [corpus.weight for corpus in corpora]
    return [weight / sum(weights[k:]) for k, weight in enumerate(weights)]


def _split(
    index: Int64[np.ndarray, " n"], corpora: tuple[MixtureCorpus, ...]
) -> tuple[Int32[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Return corpus within the group, and index within the corpus, for each index of the group."""
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
    """Return the number of rows of each corpus among the group's first ``index``."""
    counts = []
    for share in _shares(corpora):
        counts.append(math.floor(index * share))
        index -= counts[-1]
    return counts


def _floor_line(
    index: Int64[np.ndarray, " n"], slope: Fraction, offset: Fraction = Fraction(0)
) -> Int64[np.ndarray, " n"]:
    """Return the exact floor(index * slope + offset); slope in [0, 1], offset in [0, 1)."""
    denominator = math.lcm(slope.denominator, offset.denominator)
    rise, start = int(slope * denominator), int(offset * denominator)
    if denominator >= 2**31:  # Products would overflow int64; Python integers are slow but exact.
        return ((index.astype(object) * rise + start) // denominator).astype(np.int64)
    whole, part = np.divmod(index, denominator)
    return whole * rise + (part * rise + start) // denominator
