"""Random access to the rows of prepared chat data, and their conversion to batches."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float32, Int32, Int64, Integer
import numpy as np

from llama_cpt.data.batch import Batch, PreferenceBatch, TokenBatch, UnpairedBatch
from llama_cpt.data.chat.packing import TOKEN, record_fields
from llama_cpt.data.rows import Records, require_manifest
from llama_cpt.runtime.errors import UserError


class PackedBlock(NamedTuple):
    """Rows of packed chats, without corpus indices and row indices."""

    tokens: Int32[np.ndarray, "rows length"]
    targets: Int32[np.ndarray, "rows length"]
    loss_mask: Float32[np.ndarray, "rows length"]
    segment_ids: Int32[np.ndarray, "rows length"]
    example_mask: Float32[np.ndarray, "rows examples"] | None
    """1 for a preference pair or rated answer, 0 for padding; None for conversations."""
    good: Float32[np.ndarray, "rows examples"] | None
    """1 for a rated answer with a good rating, else 0; None for conversations and pairs."""
    reference_logprobs: Float32[np.ndarray, "rows segments"] | None
    """Log-probability of each answer under the reference model, in nats; None for
    conversations."""


class PackedRows:
    """Random access to the rows of a prepared corpus of chat data.

    Each row is padded to ``slots`` pairs or rated answers, or to the maximum number in a row of the
    corpus if this number is larger. ``reference``, of shape (rows, segments), contains the
    log-probabilities of the answers under the reference model and can be memory-mapped; None means
    zeros. Raises UserError if the shape does not match the corpus.
    """

    def __init__(self, folder: str, *, slots: int = 0, reference: np.ndarray | None = None) -> None:
        manifest = require_manifest(folder)
        self._records = Records(folder, manifest.shards)
        assert manifest.chat is not None, f"{folder} does not contain chat data"
        self._length, self._kind = manifest.sequence_length, manifest.chat["kind"]
        self.slots = max(manifest.units, slots)
        self._reference = reference
        if reference is not None and not (
            len(reference) == len(self) and reference.shape[1] >= 2 * manifest.units
        ):
            raise UserError(
                f"{folder}: the reference log-probabilities have shape {reference.shape}, but the "
                f"rows need shape ({len(self)}, {2 * manifest.units}); compute them again."
            )

    def __len__(self) -> int:
        return len(self._records)

    def place(self, index: int) -> tuple[str, int]:
        """Return the path of the file with the row at ``index``, and the row's index in it."""
        return self._records.place(index)

    def read(self, indices: Integer[np.ndarray, " n"]) -> PackedBlock:
        """Return the rows at ``indices``; several threads can call this method at the same time."""
        names = record_fields(self._kind)
        content = np.frombuffer(b"".join(self._records.read(indices)), TOKEN)
        content = content.reshape(len(indices), len(names), self._length).astype(np.int32)
        rows = dict(zip(names, content.swapaxes(0, 1), strict=True))
        good = rows.pop("good", None)
        loss_mask = rows.pop("loss_mask").astype(np.float32)
        if self._kind == "conversations":
            return PackedBlock(
                **rows, loss_mask=loss_mask, example_mask=None, good=None, reference_logprobs=None
            )
        segment_ids = rows["segment_ids"]
        # Segments are numbered from 1, two per example.
        used = np.arange(self.slots) < segment_ids.max(axis=1, keepdims=True) // 2
        return PackedBlock(
            **rows,
            loss_mask=loss_mask,
            example_mask=used.astype(np.float32),
            good=None if good is None else self._good(segment_ids, good),
            reference_logprobs=self._reference_logprobs(indices),
        )

    def batch(self, indices: Integer[np.ndarray, " n"]) -> Batch:
        """Return the rows at ``indices`` as a batch in which all corpus indices are 0."""
        corpus = np.zeros(len(indices), np.int32)
        return packed_batch(self.read(indices), corpus, indices.astype(np.int64))

    def _good(
        self, segment_ids: Int32[np.ndarray, "rows length"], good: Int32[np.ndarray, "rows length"]
    ) -> Float32[np.ndarray, "rows examples"]:
        """Return the rating of each answer; ``good`` contains the rating at every token."""
        found = np.zeros((len(good), self.slots), np.float32)
        row, column = np.nonzero(segment_ids)
        found[row, (segment_ids[row, column] - 1) // 2] = good[row, column]
        return found

    def _reference_logprobs(
        self, indices: Integer[np.ndarray, " n"]
    ) -> Float32[np.ndarray, "n segments"]:
        """Return the reference log-probabilities of the rows, padded to ``2 * slots`` segments."""
        padded = np.zeros((len(indices), 2 * self.slots), np.float32)
        if self._reference is not None:
            known = self._reference[indices, : padded.shape[1]]
            padded[:, : known.shape[1]] = known
        return padded


def open_packed_rows(
    folders: Sequence[str], references: Sequence[np.ndarray | None]
) -> tuple[PackedRows, ...]:
    """Return the rows of the corpora in ``folders``, padded to the same number of examples per row.

    ``references`` contains the reference log-probabilities of each corpus, as in ``PackedRows``.
    """
    slots = max((PackedRows(folder).slots for folder in folders), default=0)
    opened = zip(folders, references, strict=True)
    return tuple(PackedRows(folder, slots=slots, reference=array) for folder, array in opened)


def packed_batch(
    block: PackedBlock,
    corpus: Int32[np.ndarray, " batch"],
    row_numbers: Int64[np.ndarray, " batch"],
) -> Batch:
    """Return ``block`` as a batch; ``row_numbers`` are the indices of the rows in the run."""
    rows = TokenBatch(
        tokens=block.tokens,
        targets=block.targets,
        loss_mask=block.loss_mask,
        segment_ids=block.segment_ids,
        positions=_positions(block.segment_ids),
        corpus=np.repeat(corpus[:, None], block.tokens.shape[1], axis=1),
        row=row_numbers.astype("<i8").view("<u4").reshape(-1, 2),
    )
    if block.example_mask is None:
        return rows
    if block.good is None:
        return PreferenceBatch(rows, block.example_mask, block.reference_logprobs)
    return UnpairedBatch(rows, block.example_mask, block.good, block.reference_logprobs)


def _positions(
    segment_ids: Int32[np.ndarray, "batch length"],
) -> Int32[np.ndarray, "batch length"]:
    """Return the position of each token in its segment; padding is treated as a segment."""
    columns = np.broadcast_to(np.arange(segment_ids.shape[1], dtype=np.int32), segment_ids.shape)
    begins = np.diff(segment_ids, axis=1, prepend=-1) != 0
    # The running maximum is the column where the current segment begins.
    return columns - np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
