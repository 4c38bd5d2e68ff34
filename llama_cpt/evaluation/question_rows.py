"""Rows for ``score_options``: questions with their answer options, grouped by common prefix.

A row contains a question and its answer options; each option is a separate branch that continues
the question. Rows that begin with the same tokens form a group, and the model reads the common
prefix once per group. So that few programs are compiled, rows are padded to the lengths that
``row_bucket`` returns, and for each length, there are only two possible numbers of rows per batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from jaxtyping import Int
import numpy as np

from llama_cpt.generation.option_scoring import OptionTokens
from llama_cpt.runtime.errors import UserError

Tokens = Int[np.ndarray, "_"]
SHORTEST_PREFIX = 32
"""Minimum number of common tokens for which rows form a group."""
SHORTEST_ROW = 32
"""Minimum padded length of a row in tokens."""
MOST_OPTION_TOKENS = 256
"""Maximum number of option tokens in a row with several options. Attention needs memory and time in
proportion to the square of the length of a row, and in some tasks all requests have the same empty
context. Rows with the same long context are cheap, because it is their common prefix."""
FEW = 8
"""Ratio of the larger to the smaller of the two possible numbers of rows in a batch."""


@dataclass(frozen=True)
class QuestionRow:
    """The tokens of a question and of its answer options."""

    context: Tokens
    """Nonempty array of the tokens of the question. Each option continues the question."""
    options: list[tuple[int, Tokens]] = field(default_factory=list)
    """Request index and tokens of each option."""

    def length(self, prefix: int) -> int:
        """Return the number of tokens in the row, without the first ``prefix`` tokens.

        The last token of each option is not counted, because the model predicts it but does not
        read it.
        """
        return len(self.context) - prefix + sum(len(option) - 1 for _, option in self.options)

    @property
    def scored(self) -> int:
        """Number of tokens to predict, summed over the options."""
        return sum(len(option) for _, option in self.options)


@dataclass(frozen=True)
class PrefixGroup:
    """Rows with a common prefix: the first ``prefix`` tokens of all contexts are equal."""

    prefix: int
    rows: list[QuestionRow]


def make_rows(pairs: Sequence[tuple[Tokens, Tokens]], context_length: int) -> list[QuestionRow]:
    """Return the rows for ``pairs``, the context and continuation tokens of each request.

    As in lm-evaluation-harness, a context is truncated on the left so that the context and the
    continuation without its last token fit into ``context_length`` tokens. Requests with the same
    context share a row that has room for ``MOST_OPTION_TOKENS``. Raises UserError if a continuation
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
        most = min(len(kept) + MOST_OPTION_TOKENS, context_length)
        if row is None or row.length(0) + len(option) - 1 > most:
            row = open_rows[kept.tobytes()] = QuestionRow(kept)
            rows.append(row)
        row.options.append((number, option))
    return rows


def group_by_prefix(rows: Sequence[QuestionRow]) -> list[PrefixGroup]:
    """Group rows by common prefix; the ``prefix`` of a group with a single row is 0."""
    ordered = sorted(rows, key=lambda row: row.context.tolist())
    groups: list[PrefixGroup] = []
    start = 0
    while start < len(ordered):
        first, shared, end = ordered[start].context, len(ordered[start].context) - 1, start + 1
        while end < len(ordered):
            common = min(_shared_length(first, ordered[end].context), len(ordered[end].context) - 1)
            # A row with a much shorter common prefix would shorten the prefix of the group, and
            # therefore lengthen all other rows of the group.
            is_second = end == start + 1
            if common < SHORTEST_PREFIX or not (is_second or 2 * common >= shared):
                break
            shared, end = min(shared, common), end + 1
        groups.append(PrefixGroup(shared if end > start + 1 else 0, ordered[start:end]))
        start = end
    return groups


def merge_ungrouped(groups: Sequence[PrefixGroup]) -> list[PrefixGroup]:
    """Return ``groups`` after merging all groups without a prefix into a single group."""
    ungrouped = [row for group in groups if not group.prefix for row in group.rows]
    grouped = [group for group in groups if group.prefix]
    return [*grouped, PrefixGroup(0, ungrouped)] if ungrouped else grouped


def make_batches(
    group: PrefixGroup, batch_tokens: int, row_multiple: int
) -> Iterator[tuple[list[QuestionRow], int, int]]:
    """Yield (rows, padded length, padded number of rows) for each batch, longest rows first."""
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
    """Return the smallest of 32, 48, 64, 96, 128, 192, ... that is at least ``length``."""
    power = 1 << (max(length, SHORTEST_ROW) - 1).bit_length()
    return power * 3 // 4 if length <= power * 3 // 4 and power > SHORTEST_ROW else power


def make_option_tokens(
    rows: Sequence[QuestionRow], prefix: int, size: int, number: int
) -> OptionTokens:
    """Return the rows without their first ``prefix`` tokens as a batch of shape (number, size).

    In ``OptionTokens.options``, padding has the value -1 and the context has the value 0. The
    options of a row are numbered from 1.
    """
    tokens, positions = (np.zeros((number, size), np.int32) for _ in range(2))
    branches = np.full((number, size), -1, np.int32)
    # Indices into the flattened batch of the tokens whose logits predict ``targets``. The last
    # token of the context predicts the first token of each option; each token of an option predicts
    # the next token of the option.
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
            # Every option continues the context, so all options start at the same position.
            positions[i, span] = np.arange(len(row.context), len(row.context) + more)
            scored = slice(count, count + len(option))
            places[scored] = [last, *range(i * size + end, i * size + end + more)]
            targets[scored] = option
            end, count = end + more, count + len(option)
    return OptionTokens(tokens, positions, branches, places, targets, np.int32(count))


def _shared_length(a: Tokens, b: Tokens) -> int:
    """Return the length of the longest common prefix of two token arrays."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if different.size else size
