"""A row of a batch as a person reads it: what the model sees, and what it does not learn."""

import numpy as np

from llama_cpt.data.batch import TokenBatch
from llama_cpt.data.tokenizer.tokenizer import Tokenizer


def row_as_text(batch: TokenBatch, row: int, tokenizer: Tokenizer) -> str:
    """Row ``row`` of ``batch`` (fields (rows, length)), a paragraph a segment.

    A paragraph begins with the segment's places in the row and positions; targets that are not
    learnt are named after its text. A character cut by a border shows as U+FFFD.
    """
    segment_ids = batch.segment_ids[row]
    segments = [np.flatnonzero(segment_ids == number) for number in np.unique(segment_ids)]
    parts = [_segment(batch, row, places, tokenizer) for places in segments]
    last = tokenizer.decode([int(batch.targets[row, -1])])
    return "\n".join([*parts, f"  then, as a target only: {last!r}"])


def packed_row_as_text(batch: TokenBatch, row: int, tokenizer: Tokenizer) -> str:
    """Row ``row`` of packed chats: a paragraph a segment, what is learnt on lines with ``>``."""
    segment_ids = batch.segment_ids[row]
    parts = [
        _packed_segment(batch, row, np.flatnonzero(segment_ids == number), tokenizer)
        for number in np.unique(segment_ids[segment_ids > 0])
    ]
    return "\n".join([*parts, f"  --- {np.sum(segment_ids == 0)} places of padding"])


def _packed_segment(batch: TokenBatch, row: int, places: np.ndarray, tokenizer: Tokenizer) -> str:
    tokens = [int(batch.tokens[row, places[0]]), *batch.targets[row, places].tolist()]
    learnt = np.array([False, *batch.loss_mask[row, places].astype(bool)])
    positions = batch.positions[row, places]
    lines = [
        f"  --- segment {batch.segment_ids[row, places[0]]}: tokens {places[0]}..{places[-1]}, "
        f"positions {positions[0]}..{positions[-1]}"
    ]
    borders = [0, *(np.flatnonzero(np.diff(learnt)) + 1).tolist(), len(tokens)]
    for start, end in zip(borders, borders[1:], strict=False):
        mark = ">" if learnt[start] else "|"
        text = tokenizer.decode(tokens[start:end])
        lines += [f"  {mark} {line}" for line in text.split("\n")]
    return "\n".join(lines)


def _segment(batch: TokenBatch, row: int, places: np.ndarray, tokenizer: Tokenizer) -> str:
    tokens = batch.tokens[row, places].tolist()
    positions = batch.positions[row, places]
    lines = [
        f"  --- segment {batch.segment_ids[row, places[0]]}: tokens {places[0]}..{places[-1]}, "
        f"positions {positions[0]}..{positions[-1]}"
    ]
    if tokens[0] != tokenizer.bos_id:
        lines[0] += ", goes on from the row before"
    lines += [f"  | {line}" for line in tokenizer.decode(tokens).split("\n")]
    for place in places[batch.loss_mask[row, places] == 0]:
        target = tokenizer.decode([int(batch.targets[row, place])])
        lines.append(f"  x not learnt: {target} after token {place}")
    return "\n".join(lines)
