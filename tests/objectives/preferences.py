"""Small batches of random preference pairs and rated answers of different lengths."""

from typing import NamedTuple

import numpy as np

from llama_cpt.data.batch import PreferenceBatch, TokenBatch, UnpairedBatch

VOCAB = 128


class Pair(NamedTuple):
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class Judged(NamedTuple):
    prompt: list[int]
    answer: list[int]
    mismatch: list[int]
    good: bool


def draw_tokens(draw: np.random.Generator, least: int, most: int) -> list[int]:
    return draw.integers(2, VOCAB, draw.integers(least, most + 1)).tolist()


def random_pairs(count: int, seed: int = 0) -> list[Pair]:
    draw = np.random.default_rng(seed)
    return [
        Pair(draw_tokens(draw, 1, 5), draw_tokens(draw, 1, 7), draw_tokens(draw, 1, 7))
        for _ in range(count)
    ]


def random_judged(count: int, seed: int = 0) -> list[Judged]:
    """Return rated answers; two in three are good, and the mismatch is the next answer."""
    pairs = random_pairs(count, seed)
    return [
        Judged(pair.prompt, pair.chosen, pairs[(i + 1) % count].chosen, i % 3 != 1)
        for i, pair in enumerate(pairs)
    ]


def pack(rows: list[list[tuple[list[int], list[int]]]], length: int) -> TokenBatch:
    """Return rows of (prompt, answer) segments.

    Only answers count in the loss. Row r belongs to corpus r % 2.
    """
    shape = len(rows), length
    fields = {
        name: np.zeros(shape, np.int32)
        for name in ("tokens", "targets", "segment_ids", "positions", "corpus")
    }
    loss_mask = np.zeros(shape, np.float32)
    for r, row in enumerate(rows):
        start = 0
        for segment, (prompt, answer) in enumerate(row, 1):
            whole = prompt + answer
            end = start + len(whole) - 1
            fields["tokens"][r, start:end] = whole[:-1]
            fields["targets"][r, start:end] = whole[1:]
            fields["segment_ids"][r, start:end] = segment
            fields["positions"][r, start:end] = np.arange(end - start)
            loss_mask[r, end - len(answer) : end] = 1
            start = end
        fields["corpus"][r] = r % 2
    number = np.arange(len(rows), dtype="<i8").view("<u4").reshape(-1, 2)
    return TokenBatch(**fields, loss_mask=loss_mask, row=number)


def preference_batch(
    rows: list[list[Pair]], length: int, reference: np.ndarray | None = None
) -> PreferenceBatch:
    """Return a batch of ``rows``, padded to the largest number of pairs per row.

    ``reference`` has the reference log-probabilities (rows, 2 pairs), by default zeros.
    """
    most = max(len(row) for row in rows)
    segments = [[(p.prompt, a) for p in row for a in (p.chosen, p.rejected)] for row in rows]
    present = np.array([[p < len(row) for p in range(most)] for row in rows], np.float32)
    if reference is None:
        reference = np.zeros((len(rows), 2 * most), np.float32)
    return PreferenceBatch(pack(segments, length), present, reference)


def unpaired_batch(
    rows: list[list[Judged]], length: int, reference: np.ndarray | None = None
) -> UnpairedBatch:
    most = max(len(row) for row in rows)
    segments = [[(j.prompt, a) for j in row for a in (j.answer, j.mismatch)] for row in rows]
    present = np.array([[p < len(row) for p in range(most)] for row in rows], np.float32)
    good = np.array(
        [[p < len(row) and row[p].good for p in range(most)] for row in rows], np.float32
    )
    if reference is None:
        reference = np.zeros((len(rows), 2 * most), np.float32)
    return UnpairedBatch(pack(segments, length), present, good, reference)
