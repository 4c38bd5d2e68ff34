"""The loader: threads read rows of the mixture and make batches ahead of the training step."""

from collections.abc import Callable, Generator, Sequence
from functools import partial
import sys
from typing import Protocol, runtime_checkable

import grain
import jax
from jaxtyping import Bool, Int32, Int64, UInt32
import numpy as np

from llama_cpt.data.batch import Batch, TokenBatch
from llama_cpt.data.mixture import Mixture
from llama_cpt.data.packed_rows import PackedBlock, packed_batch
from llama_cpt.data.rows import DOCUMENT_START, TOKEN_BITS
from llama_cpt.runtime.errors import UserError

# Number of batches that are read ahead, each by its own thread. Reading then overlaps with the
# steps, and host memory holds only this many batches.
_BATCHES_AHEAD = 4


@runtime_checkable
class RowSource(Protocol):
    """Interface of classes that read rows by index, such as ``TokenRows`` and ``PackedRows``."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> np.ndarray | PackedBlock:
        """Return the rows at ``indices``: tokens, uint32 (n, length + 1), or packed chats.

        The first tokens of documents are marked with ``DOCUMENT_START``. The method must be
        thread-safe.
        """
        ...


def batches(
    mixture: Mixture,
    corpora: Sequence[RowSource],
    *,
    global_batch_size: int,
    num_microbatches: int,
    start_row: int,
    rows_here: Int64[np.ndarray, " rows_here"] | None = None,
) -> Generator[Batch]:
    """Return an endless generator of batches, starting at row ``start_row`` of the run.

    The fields of a batch have shape (micro-batches, rows, ...); for example, ``tokens`` has shape
    (micro-batches, rows, length). ``rows_here`` contains the indices of this process's rows within
    each micro-batch; None selects all rows. Only selected rows are read and returned. The cost of
    starting does not depend on ``start_row``. ``next`` raises any exception of a corpus's ``read``.
    The threads end when the generator is closed or garbage-collected.

    Raises UserError if ``global_batch_size`` is not a multiple of ``num_microbatches``.
    """
    if global_batch_size % num_microbatches:
        nearest = max(round(global_batch_size / num_microbatches), 1) * num_microbatches
        raise UserError(
            f"global_batch_size={global_batch_size} must be a multiple of {num_microbatches}, the "
            f"number of micro-batches; the nearest multiple is {nearest}."
        )
    offsets = np.arange(global_batch_size, dtype=np.int64).reshape(num_microbatches, -1)
    if rows_here is not None:
        offsets = offsets[:, rows_here]
    read = partial(read_batch, mixture, corpora)

    def batch_of(step: int) -> Batch:
        return read(start_row + step * global_batch_size + offsets)

    return _read_ahead(batch_of)


def read_batch(
    mixture: Mixture,
    corpora: Sequence[RowSource],
    row_numbers: Int64[np.ndarray, "microbatches rows"],
) -> Batch:
    """Return the rows of the run with the indices ``row_numbers`` as one batch.

    The fields of the batch have shape (micro-batches, rows, ...).
    """
    flat = row_numbers.reshape(-1)
    corpus, index = mixture.locate(flat)
    parts = []
    for c in np.unique(corpus):
        mine = corpus == c
        rows = corpora[c].read(index[mine])
        if isinstance(rows, PackedBlock):
            parts.append(packed_batch(rows, corpus[mine], flat[mine]))
        else:
            parts.append(row_batch(rows, corpus[mine], flat[mine]))
    # ``parts`` contains the rows sorted by corpus. The double argsort is the inverse of this stable
    # sort, so it restores the order of ``row_numbers``.
    inverse = np.argsort(np.argsort(corpus, kind="stable"), kind="stable")

    def joined(*arrays: np.ndarray) -> np.ndarray:
        return np.concatenate(arrays)[inverse].reshape(*row_numbers.shape, -1)

    return jax.tree.map(joined, *parts)


def row_batch(
    rows: UInt32[np.ndarray, "batch length_and_one"],
    corpus: Int32[np.ndarray, " batch"],
    row_numbers: Int64[np.ndarray, " batch"],
) -> TokenBatch:
    """Return rows of L + 1 tokens as a NumPy batch of inputs (first L) and targets (last L).

    The bit ``DOCUMENT_START`` marks the first token of each document. A segment begins at each
    mark and at the start of each row. A document that continues from the previous row is therefore
    a new segment, and its positions start at 0. A target that is the first token of a document does
    not count in the loss.
    """
    starts = rows >= DOCUMENT_START
    signed = (rows & TOKEN_BITS).view(np.int32)
    tokens = np.ascontiguousarray(signed[:, :-1])
    targets = np.ascontiguousarray(signed[:, 1:])
    segment_ids, positions = segment_ids_and_positions(starts[:, :-1])
    return TokenBatch(
        tokens=tokens,
        targets=targets,
        loss_mask=(~starts[:, 1:]).astype(np.float32),
        segment_ids=segment_ids,
        positions=positions,
        corpus=np.repeat(corpus[:, None], tokens.shape[1], axis=1),
        row=row_numbers.astype("<i8").view("<u4").reshape(-1, 2),
    )


def segment_ids_and_positions(
    starts: Bool[np.ndarray, "batch length"],
) -> tuple[Int32[np.ndarray, "batch length"], Int32[np.ndarray, "batch length"]]:
    """Return each token's segment index, from 1, and its position in the segment, from 0.

    ``starts`` is True for the first token of each document.
    """
    count, length = starts.shape
    begins = starts.copy()
    begins[:, 0] = True
    flat = np.flatnonzero(begins).astype(np.int32)
    lengths = np.diff(flat, append=np.int32(count * length))
    positions = np.arange(count * length, dtype=np.int32) - np.repeat(flat, lengths)
    per_row = begins.sum(axis=1)
    first = np.cumsum(per_row) - per_row
    numbers = np.arange(1, flat.size + 1) - np.repeat(first, per_row)
    segment_ids = np.repeat(numbers.astype(np.int32), lengths)
    return segment_ids.reshape(count, length), positions.reshape(count, length)


def _read_ahead(batch_of: Callable[[int], Batch]) -> Generator[Batch]:
    """Yield ``batch_of(0)``, ``batch_of(1)``, ... in order; threads compute them ahead of time."""
    options = grain.ReadOptions(num_threads=_BATCHES_AHEAD, prefetch_buffer_size=_BATCHES_AHEAD)
    dataset = grain.MapDataset.range(sys.maxsize).map(batch_of).to_iter_dataset(options)
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()
