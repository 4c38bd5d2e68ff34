"""Text rendering of the rows of a batch, for inspection."""

import numpy as np

from llama_cpt.data.batch import TokenBatch
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.runtime.untrusted_text import printable


def row_as_text(batch: TokenBatch, row: int, tokenizer: Tokenizer, *, continued: bool) -> str:
    """Return row ``row`` of ``batch`` as text, one paragraph per segment.

    The fields of ``batch`` have shape (rows, length). A paragraph starts with the columns and the
    positions of the segment's tokens. It ends with the targets that do not count in the loss. A
    character that is split between two segments is shown as U+FFFD. Characters that control a
    terminal are removed. ``continued`` is True if the row begins within a document.
    """
    segment_ids = batch.segment_ids[row]
    segments = [np.flatnonzero(segment_ids == number) for number in np.unique(segment_ids)]
    parts = [_segment(batch, row, columns, tokenizer) for columns in segments]
    if continued:
        header, line_break, text = parts[0].partition("\n")
        parts[0] = f"{header}, continues a document of the previous row{line_break}{text}"
    last = tokenizer.decode([int(batch.targets[row, -1])])
    return printable("\n".join([*parts, f"  then, as a target only: {last!r}"]))


def packed_row_as_text(batch: TokenBatch, row: int, tokenizer: Tokenizer) -> str:
    """Return row ``row`` of a batch of packed chats as text, one paragraph per segment.

    A line starts with ``>`` if its tokens count in the loss, otherwise with ``|``. Characters that
    control a terminal are removed.
    """
    segment_ids = batch.segment_ids[row]
    parts = [
        _packed_segment(batch, row, np.flatnonzero(segment_ids == number), tokenizer)
        for number in np.unique(segment_ids[segment_ids > 0])
    ]
    padding = f"  --- {np.sum(segment_ids == 0)} positions of padding"
    return printable("\n".join([*parts, padding]))


def _packed_segment(batch: TokenBatch, row: int, columns: np.ndarray, tokenizer: Tokenizer) -> str:
    tokens = [int(batch.tokens[row, columns[0]]), *batch.targets[row, columns].tolist()]
    learned = np.array([False, *batch.loss_mask[row, columns].astype(bool)])
    positions = batch.positions[row, columns]
    lines = [
        f"  --- segment {batch.segment_ids[row, columns[0]]}: tokens {columns[0]}..{columns[-1]}, "
        f"positions {positions[0]}..{positions[-1]}"
    ]
    borders = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(tokens)]
    for start, end in zip(borders, borders[1:], strict=False):
        mark = ">" if learned[start] else "|"
        text = tokenizer.decode(tokens[start:end])
        lines += [f"  {mark} {line}" for line in text.split("\n")]
    return "\n".join(lines)


def _segment(batch: TokenBatch, row: int, columns: np.ndarray, tokenizer: Tokenizer) -> str:
    tokens = batch.tokens[row, columns].tolist()
    positions = batch.positions[row, columns]
    lines = [
        f"  --- segment {batch.segment_ids[row, columns[0]]}: tokens {columns[0]}..{columns[-1]}, "
        f"positions {positions[0]}..{positions[-1]}"
    ]
    lines += [f"  | {line}" for line in tokenizer.decode(tokens).split("\n")]
    for column in columns[batch.loss_mask[row, columns] == 0]:
        target = tokenizer.decode([int(batch.targets[row, column])])
        lines.append(f"  x not learned: {target} after token {column}")
    return "\n".join(lines)
