"""Prepared chat data by index, and the batches that it makes."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float32, Int32, Int64, Integer
import numpy as np

from llama_cpt.data.batch import Batch, PreferenceBatch, TokenBatch, UnpairedBatch
from llama_cpt.data.chat.packing import TOKEN, record_fields
from llama_cpt.data.rows import Records, require_manifest
from llama_cpt.runtime.errors import UserError


class PackedBlock(NamedTuple):
    """Some rows, whatever corpus they are of."""

    tokens: Int32[np.ndarray, "rows length"]
    targets: Int32[np.ndarray, "rows length"]
    loss_mask: Float32[np.ndarray, "rows length"]
    segment_ids: Int32[np.ndarray, "rows length"]
    example_mask: Float32[np.ndarray, "rows units"] | None
    """Which pairs or judged answers are there; None for conversations."""
    good: Float32[np.ndarray, "rows units"] | None
    """Which judged answers are good; None where none is judged."""
    reference_logprobs: Float32[np.ndarray, "rows segments"] | None


class PackedRows:
    """A prepared corpus of chat data: rows by index.

    ``units`` is the number of pairs or judged answers that every row is given room for; 0 is as
    many as the corpus needs. ``reference``: log-probabilities of the answers, (rows, segments),
    perhaps memory-mapped; zeros without it. Raises UserError where they are of other rows.
    """

    def __init__(self, folder: str, *, units: int = 0, reference: np.ndarray | None = None) -> None:
        manifest = require_manifest(folder)
        self._records = Records(folder, manifest.shards)
        self._length, self._kind = manifest.sequence_length, manifest.chat["kind"]
        self.units = max(manifest.units, units)
        self._reference = reference
        if reference is not None and not (
            len(reference) == len(self) and reference.shape[1] >= 2 * manifest.units
        ):
            raise UserError(
                f"{folder}: reference log-probabilities of shape {reference.shape} are of other "
                f"rows: ({len(self)}, {2 * manifest.units}) is needed. Compute them anew."
            )

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: Integer[np.ndarray, " n"]) -> PackedBlock:
        """Rows ``indices``; called from several threads at once."""
        names = record_fields(self._kind)
        content = np.frombuffer(b"".join(self._records.read(indices)), TOKEN)
        content = content.reshape(len(indices), len(names), self._length).astype(np.int32)
        rows = dict(zip(names, content.swapaxes(0, 1), strict=True))
        good = rows.pop("good", None)
        rows["loss_mask"] = rows["loss_mask"].astype(np.float32)
        if self._kind == "conversations":
            return PackedBlock(**rows, example_mask=None, good=None, reference_logprobs=None)
        segment_ids = rows["segment_ids"]
        there = np.arange(self.units) < segment_ids.max(axis=1, keepdims=True) // 2
        return PackedBlock(
            **rows,
            example_mask=there.astype(np.float32),
            good=None if good is None else self._good(segment_ids, good),
            reference_logprobs=self._reference_logprobs(indices),
        )

    def batch(self, indices: Integer[np.ndarray, " n"]) -> Batch:
        """Rows ``indices`` by themselves: of corpus 0, their own indices as row numbers."""
        corpus = np.zeros(len(indices), np.int32)
        return packed_batch(self.read(indices), corpus, indices.astype(np.int64))

    def _good(
        self, segment_ids: Int32[np.ndarray, "rows length"], good: Int32[np.ndarray, "rows length"]
    ) -> Float32[np.ndarray, "rows units"]:
        found = np.zeros((len(good), self.units), np.float32)
        row, place = np.nonzero(segment_ids)
        found[row, (segment_ids[row, place] - 1) // 2] = good[row, place]
        return found

    def _reference_logprobs(
        self, indices: Integer[np.ndarray, " n"]
    ) -> Float32[np.ndarray, "n segments"]:
        wide = np.zeros((len(indices), 2 * self.units), np.float32)
        if self._reference is not None:
            known = self._reference[indices, : wide.shape[1]]
            wide[:, : known.shape[1]] = known
        return wide


def open_packed_rows(
    folders: Sequence[str], references: Sequence[np.ndarray | None]
) -> tuple[PackedRows, ...]:
    """The corpora of a run, with the same room for pairs or judged answers in all rows."""
    units = max(PackedRows(folder).units for folder in folders)
    opened = zip(folders, references, strict=True)
    return tuple(PackedRows(folder, units=units, reference=array) for folder, array in opened)


def packed_batch(
    block: PackedBlock,
    corpus: Int32[np.ndarray, " batch"],
    row_numbers: Int64[np.ndarray, " batch"],
) -> Batch:
    """The batch that ``block`` is, of the corpora ``corpus`` and the run's ``row_numbers``."""
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
    """Place in its segment of every token, padding's in the padding."""
    places = np.broadcast_to(np.arange(segment_ids.shape[1], dtype=np.int32), segment_ids.shape)
    begins = np.diff(segment_ids, axis=1, prepend=-1) != 0
    return places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)
