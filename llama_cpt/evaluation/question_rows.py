"""Questions and their options as rows for ``score_branches``: grouped by what they begin with.

A row is a question and its options, each option a branch. Rows that begin with the same tokens
form a group, whose common beginning is read once. Rows of a group go into batches of one length
out of a few, and of one of two numbers of rows, so that little is compiled.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from jaxtyping import Int
import numpy as np

from llama_cpt.generation.option_scoring import OptionTokens
from llama_cpt.runtime.errors import UserError

Tokens = Int[np.ndarray, "_"]
SHORTEST_PREFIX = 32
"""Tokens in common that are worth a pass of their own."""
SHORTEST_ROW = 32
FEW = 8
"""What is left of a group goes into batches of so many times fewer rows."""


@dataclass(frozen=True)
class QuestionRow:
    """A question and options to score behind it."""

    context: Tokens
    """What all options follow; at least one token."""
    options: list[tuple[int, Tokens]] = field(default_factory=list)
    """Number of the request, and its tokens."""

    def length(self, prefix: int) -> int:
        """Tokens that the row takes behind a prefix: an option's last token is predicted only."""
        return len(self.context) - prefix + sum(len(option) - 1 for _, option in self.options)

    @property
    def scored(self) -> int:
        """Tokens that are predicted."""
        return sum(len(option) for _, option in self.options)


@dataclass(frozen=True)
class PrefixGroup:
    """Rows whose trunks begin with the same ``prefix`` tokens."""

    prefix: int
    rows: list[QuestionRow]


def make_rows(pairs: Sequence[tuple[Tokens, Tokens]], context_length: int) -> list[QuestionRow]:
    """Rows of requests (context, continuation), numbered as they come.

    Cut on the left to what ``context_length`` tokens predict, as lm-evaluation-harness does. Raises
    UserError for a continuation that is longer than that.
    """
    rows: list[QuestionRow] = []
    open_rows: dict[bytes, QuestionRow] = {}
    for number, (context, option) in enumerate(pairs):
        if len(option) > context_length:
            raise UserError(
                f"an option of {len(option)} tokens is longer than the model's context of "
                f"{context_length}: this task cannot be put to this model."
            )
        trunk = context[-(context_length + 1 - len(option)) :]
        row = open_rows.get(trunk.tobytes())
        if row is None or row.length(0) + len(option) - 1 > context_length:
            row = open_rows[trunk.tobytes()] = QuestionRow(trunk)
            rows.append(row)
        row.options.append((number, option))
    return rows


def group_by_prefix(rows: Sequence[QuestionRow]) -> list[PrefixGroup]:
    """All ``rows`` in groups; a group of one has no prefix."""
    ordered = sorted(rows, key=lambda row: row.context.tolist())
    groups: list[PrefixGroup] = []
    start = 0
    while start < len(ordered):
        first, shared, end = ordered[start].context, len(ordered[start].context) - 1, start + 1
        while end < len(ordered):
            common = min(_common(first, ordered[end].context), len(ordered[end].context) - 1)
            # A row that shares much less would lengthen all others.
            alone = end == start + 1
            if common < SHORTEST_PREFIX or not (alone or 2 * common >= shared):
                break
            shared, end = min(shared, common), end + 1
        groups.append(PrefixGroup(shared if end > start + 1 else 0, ordered[start:end]))
        start = end
    return groups


def merge_ungrouped(groups: Sequence[PrefixGroup]) -> list[PrefixGroup]:
    """``groups`` with all that have no prefix as one."""
    alone = [row for group in groups if not group.prefix for row in group.rows]
    return [group for group in groups if group.prefix] + [PrefixGroup(0, alone)] * bool(alone)


def make_batches(
    group: PrefixGroup, batch_tokens: int, row_multiple: int
) -> Iterator[tuple[list[QuestionRow], int, int]]:
    """Rows that go together, longest first, with the length and number that they are padded to."""
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
    """The least of 32, 48, 64, 96, 128, 192, ... that holds ``length``."""
    power = 1 << (max(length, SHORTEST_ROW) - 1).bit_length()
    return power * 3 // 4 if length <= power * 3 // 4 and power > SHORTEST_ROW else power


def make_option_tokens(
    rows: Sequence[QuestionRow], prefix: int, size: int, number: int
) -> OptionTokens:
    """One batch (number, size) of up to ``number`` rows; padding is a branch of its own."""
    tokens, positions = (np.zeros((number, size), np.int32) for _ in range(2))
    branches = np.full((number, size), -1, np.int32)
    places, targets = (np.zeros(number * size, np.int32) for _ in range(2))
    count = 0
    for i, row in enumerate(rows):
        at = len(row.context) - prefix
        tokens[i, :at], branches[i, :at] = row.context[prefix:], 0
        positions[i, :at] = np.arange(prefix, len(row.context))
        last = i * size + at - 1
        for branch, (_, option) in enumerate(row.options, 1):
            more = len(option) - 1
            here = slice(at, at + more)
            tokens[i, here], branches[i, here] = option[:-1], branch
            positions[i, here] = np.arange(len(row.context), len(row.context) + more)
            scored = slice(count, count + len(option))
            places[scored] = [last, *range(i * size + at, i * size + at + more)]
            targets[scored] = option
            at, count = at + more, count + len(option)
    return OptionTokens(tokens, positions, branches, places, targets, np.int32(count))


def _common(a: Tokens, b: Tokens) -> int:
    """How many tokens two rows begin with alike."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if different.size else size
