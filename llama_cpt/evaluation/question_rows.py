"""Rows for ``score_options``: questions with their options, grouped by a shared prefix.

A row is a question with its options, each of which is a branch after the question. Rows that begin
with the same tokens form a group, whose prefix is read once. Batches have one of a few lengths and
one of two numbers of rows, so that few programs are compiled.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from jaxtyping import Int
import numpy as np

from llama_cpt.generation.option_scoring import OptionTokens
from llama_cpt.runtime.errors import UserError

Tokens = Int[np.ndarray, "_"]
SHORTEST_PREFIX = 32
"""Minimum number of shared tokens for a prefix to be read separately."""
SHORTEST_ROW = 32
FEW = 8
"""Factor by which the smaller of the two batch sizes is smaller."""


@dataclass(frozen=True)
class QuestionRow:
    """A question with the options to score after it."""

    context: Tokens
    """Tokens before all options, at least one."""
    options: list[tuple[int, Tokens]] = field(default_factory=list)
    """Number of the request and tokens of each option."""

    def length(self, prefix: int) -> int:
        """Return the length of the row after ``prefix`` tokens.

        The last token of an option is predicted only, so it takes no position.
        """
        return len(self.context) - prefix + sum(len(option) - 1 for _, option in self.options)

    @property
    def scored(self) -> int:
        """Number of predicted tokens."""
        return sum(len(option) for _, option in self.options)


@dataclass(frozen=True)
class PrefixGroup:
    """Rows whose contexts begin with the same ``prefix`` tokens."""

    prefix: int
    rows: list[QuestionRow]


def make_rows(pairs: Sequence[tuple[Tokens, Tokens]], context_length: int) -> list[QuestionRow]:
    """Return rows for requests (context, continuation), which are numbered in order.

    Contexts are truncated on the left to ``context_length``, as in lm-evaluation-harness. Requests
    with the same context share a row as long as it fits. Raises UserError for a continuation that
    is longer than ``context_length``.
    """
    rows: list[QuestionRow] = []
    open_rows: dict[bytes, QuestionRow] = {}
    for number, (context, option) in enumerate(pairs):
        if len(option) > context_length:
            raise UserError(
                f"an option of {len(option)} tokens is longer than the model's context of "
                f"{context_length}; this model cannot run this task."
            )
        kept = context[-(context_length + 1 - len(option)) :]
        row = open_rows.get(kept.tobytes())
        if row is None or row.length(0) + len(option) - 1 > context_length:
            row = open_rows[kept.tobytes()] = QuestionRow(kept)
            rows.append(row)
        row.options.append((number, option))
    return rows


def group_by_prefix(rows: Sequence[QuestionRow]) -> list[PrefixGroup]:
    """Group rows by a shared prefix; a group of one row has no prefix."""
    ordered = sorted(rows, key=lambda row: row.context.tolist())
    groups: list[PrefixGroup] = []
    start = 0
    while start < len(ordered):
        first, shared, end = ordered[start].context, len(ordered[start].context) - 1, start + 1
        while end < len(ordered):
            common = min(_shared_length(first, ordered[end].context), len(ordered[end].context) - 1)
            # A row that shares much less would shorten the prefix, and so lengthen all other rows.
            is_second = end == start + 1
            if common < SHORTEST_PREFIX or not (is_second or 2 * common >= shared):
                break
            shared, end = min(shared, common), end + 1
        groups.append(PrefixGroup(shared if end > start + 1 else 0, ordered[start:end]))
        start = end
    return groups


def merge_ungrouped(groups: Sequence[PrefixGroup]) -> list[PrefixGroup]:
    """Return ``groups`` with all groups without a prefix merged into one."""
    ungrouped = [row for group in groups if not group.prefix for row in group.rows]
    grouped = [group for group in groups if group.prefix]
    return [*grouped, PrefixGroup(0, ungrouped)] if ungrouped else grouped


def make_batches(
    group: PrefixGroup, batch_tokens: int, row_multiple: int
) -> Iterator[tuple[list[QuestionRow], int, int]]:
    """Yield batches of rows, longest first, with the length and number to pad them to."""
    by_size: dict[int, list[QuestionRow]] = {}
    for row in sorted(group.rows, key=lambda row: -row.length(group.prefix)):
        size = row_bucket(max(row.length(group.prefix), row.scored))
        by_size.setdefault(size, []).append(row)
    for size, rows in by_size.items():
        many = max(batch_tokens // size // row_multiple, 1) * row_multiple
        few = max(many // FEW // row_multiple, 1) * row_multiple
        start = 0
        while start < len(rows):
            number = many if len(rows) - start > many // 2 else few
            yield rows[start : start + number], size, number
            start += number


def row_bucket(length: int) -> int:
    """Return the least of 32, 48, 64, 96, 128, 192, ... that is at least ``length``."""
    power = 1 << (max(length, SHORTEST_ROW) - 1).bit_length()
    return power * 3 // 4 if length <= power * 3 // 4 and power > SHORTEST_ROW else power


def make_option_tokens(
    rows: Sequence[QuestionRow], prefix: int, size: int, number: int
) -> OptionTokens:
    """Return a batch of shape (number, size); padding has branch -1, the context branch 0."""
    tokens, positions = (np.zeros((number, size), np.int32) for _ in range(2))
    branches = np.full((number, size), -1, np.int32)
    # Flat positions in the batch whose logits predict ``targets``. An option's first token is
    # predicted at the end of the context, the others at the tokens of the option before them.
    places, targets = (np.zeros(number * size, np.int32) for _ in range(2))
    count = 0
    for i, row in enumerate(rows):
        end = len(row.context) - prefix
        tokens[i, :end], branches[i, :end] = row.context[prefix:], 0
        positions[i, :end] = np.arange(prefix, len(row.context))
        last = i * size + end - 1
        for branch, (_, option) in enumerate(row.options, 1):
            more = len(option) - 1
            span = slice(end, end + more)
            tokens[i, span], branches[i, span] = option[:-1], branch
            # Every option continues the context, so that all of them start at the same position.
            positions[i, span] = np.arange(len(row.context), len(row.context) + more)
            scored = slice(count, count + len(option))
            places[scored] = [last, *range(i * size + end, i * size + end + more)]
            targets[scored] = option
            end, count = end + more, count + len(option)
    return OptionTokens(tokens, positions, branches, places, targets, np.int32(count))


def _shared_length(a: Tokens, b: Tokens) -> int:
    """Return the number of equal tokens at the beginning of two rows."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if different.size else size
