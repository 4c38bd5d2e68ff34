"""The loader: reads rows of the mixture, cuts them into inputs and targets, ahead of the step."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
import sys
from typing import Protocol, runtime_checkable

import grain
import jax
from jaxtyping import Int32, Int64, Integer, UInt32
import numpy as np

from llama_cpt.data.batch import Batch, TokenBatch
from llama_cpt.data.mixture import Mixture
from llama_cpt.data.packed_rows import PackedBlock, packed_batch
from llama_cpt.runtime.errors import UserError

# Batches that are read ahead, each by its own thread: enough that the step never waits, and few
# enough to fit in memory at any batch size that the step can take.
_BATCHES_AHEAD = 4


@runtime_checkable
class RowSource(Protocol):
    """The interface of rows by index, as in ``rows.TokenRows`` and ``packed_rows.PackedRows``."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> np.ndarray | PackedBlock:
        """Return rows ``indices``, uint32 (n, length + 1) or packed; must be thread-safe."""
        ...


def batches(
    mixture: Mixture,
    corpora: Sequence[RowSource],
    *,
    bos_id: int,
    global_batch_size: int,
    num_microbatches: int,
    start_row: int,
    rows_here: Int64[np.ndarray, " rows_here"] | None = None,
) -> Iterator[Batch]:
    """Return an endless iterator over this process's part of every batch from ``start_row`` on.

    Fields have shape (micro-batches, rows, ...), for example ``tokens`` (micro-batches, rows,
    length), and hold rows ``rows_here`` of every micro-batch; None means all. No other row is read,
    and starting at ``start_row`` costs the same as starting at 0. Exceptions of ``read`` are raised
    by ``next``. Closing or dropping the iterator ends its threads.

    Raises UserError if the batch cannot be divided into micro-batches.
    """
    if global_batch_size % num_microbatches:
        nearest = max(round(global_batch_size / num_microbatches), 1) * num_microbatches
        raise UserError(
            f"global_batch_size={global_batch_size} must be a multiple of {num_microbatches} "
            f"micro-batches; nearest: {nearest}."
        )
    offsets = np.arange(global_batch_size, dtype=np.int64).reshape(num_microbatches, -1)
    if rows_here is not None:
        offsets = offsets[:, rows_here]
    read = partial(read_batch, mixture, corpora, bos_id)

    def batch_of(step: int) -> Batch:
        return read(start_row + step * global_batch_size + offsets)

    return _read_ahead(batch_of)


def read_batch(
    mixture: Mixture,
    corpora: Sequence[RowSource],
    bos_id: int,
    row_numbers: Int64[np.ndarray, "microbatches rows"],
) -> Batch:
    """Return the run's rows ``row_numbers``; fields have shape (micro-batches, rows, ...)."""
    flat = row_numbers.reshape(-1)
    corpus, index = mixture.locate(flat)
    parts = [corpora[c].read(index[corpus == c]) for c in np.unique(corpus)]
    # ``parts`` holds the rows sorted by corpus; the double argsort is the inverse of that stable
    # sort and restores the order of ``row_numbers``.
    inverse = np.argsort(np.argsort(corpus, kind="stable"), kind="stable")
    rows = jax.tree.map(lambda *arrays: np.concatenate(arrays)[inverse], *parts)
    if isinstance(rows, PackedBlock):
        batch: Batch = packed_batch(rows, corpus, flat)
    else:
        batch = row_batch(rows, corpus, flat, bos_id)
    return jax.tree.map(lambda x: x.reshape(*row_numbers.shape, -1), batch)


def row_batch(
    rows: UInt32[np.ndarray, "batch length_and_one"],
    corpus: Int32[np.ndarray, " batch"],
    row_numbers: Int64[np.ndarray, " batch"],
    bos_id: int,
) -> TokenBatch:
    """Return rows of L + 1 tokens as a batch of inputs (first L) and targets (last L) in NumPy.

    A segment begins at BOS and at the start of a row: the rest of a document of the previous row is
    a segment that starts at position 0. BOS never counts as a target.
    """
    signed = rows.view(np.int32)
    tokens = np.ascontiguousarray(signed[:, :-1])
    targets = np.ascontiguousarray(signed[:, 1:])
    segment_ids, positions = segment_ids_and_positions(tokens, bos_id)
    return TokenBatch(
        tokens=tokens,
        targets=targets,
        loss_mask=(targets != bos_id).astype(np.float32),
        segment_ids=segment_ids,
        positions=positions,
        corpus=np.repeat(corpus[:, None], tokens.shape[1], axis=1),
        row=row_numbers.astype("<i8").view("<u4").reshape(-1, 2),
    )


def segment_ids_and_positions(
    tokens: Integer[np.ndarray, "batch length"], bos_id: int
) -> tuple[Int32[np.ndarray, "batch length"], Int32[np.ndarray, "batch length"]]:
    """Return the segment number (from 1) and position in the segment (from 0) of every token."""
    count, length = tokens.shape
    begins = tokens == bos_id
    begins[:, 0] = True
    flat = np.flatnonzero(begins).astype(np.int32)
    lengths = np.diff(flat, append=np.int32(count * length))
    positions = np.arange(count * length, dtype=np.int32) - np.repeat(flat, lengths)
    per_row = begins.sum(axis=1)
    first = np.cumsum(per_row) - per_row
    numbers = np.arange(1, flat.size + 1) - np.repeat(first, per_row)
    segment_ids = np.repeat(numbers.astype(np.int32), lengths)
    return segment_ids.reshape(count, length), positions.reshape(count, length)


def _read_ahead(batch_of: Callable[[int], Batch]) -> Iterator[Batch]:
    """Yield ``batch_of(0)``, ``batch_of(1)``, ... in order, computed ahead by threads."""
    options = grain.ReadOptions(num_threads=_BATCHES_AHEAD, prefetch_buffer_size=_BATCHES_AHEAD)
    dataset = grain.MapDataset.range(sys.maxsize).map(batch_of).to_iter_dataset(options)
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()
