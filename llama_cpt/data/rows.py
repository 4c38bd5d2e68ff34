"""Token rows and held-out documents in ArrayRecord files, written once and read by index.

A row is sequence_length + 1 little-endian uint32 tokens; rows do not overlap. A held-out document
is one record: the UTF-8 bytes of its source as uint64, then its tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import contextlib
from dataclasses import asdict, dataclass, field
import json
import os
import pathlib
import tempfile
from typing import Any

from array_record.python import array_record_module
from etils import epath
from jaxtyping import Integer, UInt32
import numpy as np

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.files import write_atomic
from llama_cpt.runtime.retry import describes_transient
from llama_cpt.runtime.storage import UnreachableError, call_with_timeout, storage_error

MANIFEST = "manifest.json"
# Rows are read one by one in random order, and a group is decompressed as a whole: with 8 rows per
# group, reading a row takes four times as long. Measured with rows of 8192 Llama 3 tokens of
# Chinese on one core (thousand rows per second read at random, the same written, bytes per token):
# uncompressed 28, 24, 4.01; snappy 18, 14, 2.02; zstd:1 21, 8, 1.66. Snappy halves disk and network
# and takes 3 % of the time of prepare, zstd 6 %; all of them read much faster than a loader needs.
WRITER_OPTIONS = "group_size:1,snappy"
# Random reads never use what was read ahead.
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
READER_BUFFER_BYTES = 32 << 10
# Reading a row from a bucket, mounted or not, takes about 50 ms, whatever its size. One at a time
# in each of four batches, that is 80 rows per second; a 1B model on eight v6e chips consumes 50.
READS_AT_A_TIME = 32
_READS = ThreadPoolExecutor(READS_AT_A_TIME, thread_name_prefix="rows")
TOKEN = np.dtype("<u4")


@dataclass(frozen=True)
class Manifest:
    """The description of a prepared corpus; a folder without one is incomplete."""

    corpus: str
    tokenizer: str
    """Fingerprint of the vocabulary."""
    sequence_length: int
    """Tokens per row without the last target; 0 for held-out documents."""
    text_field: str
    bad_documents: str
    sources: list[dict[str, Any]]
    """``{"path", "bytes", "modified", "digest"}`` of each source file."""
    shards: list[tuple[str, int]]
    """File name and number of records of each shard."""
    documents: int
    tokens: int
    """All tokens, including BOS and EOS."""
    dropped_tokens: int
    """Tokens of tails shorter than a row; for chats, tokens that did not fit a row."""
    source_bytes: int
    characters: int
    skipped: dict[str, int]
    """Number of bad documents by reason."""
    checked_documents: int
    """Documents that were decoded again to check that the tokenizer preserves text."""
    lossy_documents: int
    """Checked documents that the tokenizer changed."""
    dataset: str = ""
    """The source if it is a TFDS name, else empty."""
    digest: str = ""
    """SHA-256 over the records of all shards."""
    chat: dict[str, Any] | None = None
    """Fields of ``chat.examples.ChatSpec`` for chat data; None for documents."""
    formats: dict[str, int] = field(default_factory=dict)
    """Number of chats by format."""
    units: int = 0
    """Maximum number of examples (conversations, pairs or rated answers) per row."""
    chat_counts: dict[str, int] = field(default_factory=dict)
    """Statistics of packing by the names in ``prepare.shards.CHAT_COUNTS``."""

    @property
    def rows(self) -> int:
        """Number of records in all shards."""
        return sum(rows for _, rows in self.shards)

    @property
    def fingerprint(self) -> str:
        """A string that changes if the rows change; it does not depend on paths."""
        return f"{self.tokenizer} {self.sequence_length} {self.rows} {self.digest}"

    def lossy(self) -> str:
        """Return a message if the tokenizer changes documents, else an empty string."""
        if not self.lossy_documents:
            return ""
        share = self.lossy_documents / self.checked_documents
        heldout = "" if self.sequence_length else "held-out "
        return (
            f"lossy: the tokenizer changes {share:.1%} of the documents of {heldout}{self.corpus} "
            f"({self.checked_documents:,} checked)"
        )


def read_manifest(folder: str) -> Manifest | None:
    """Return the manifest of a prepared folder; None if preparation is not complete."""
    path = epath.Path(folder) / MANIFEST
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
        if "learn" in (values.get("chat") or {}):  # the name in earlier versions
            values["chat"]["loss_on"] = values["chat"].pop("learn")
        manifest = Manifest(**values | {"shards": [tuple(shard) for shard in values["shards"]]})
        if all("digest" in source for source in manifest.sources):
            return manifest
        error: Exception = KeyError("sources have no digest")
    except (ValueError, TypeError, KeyError) as caught:
        error = caught
    raise UserError(f"{path}: not a manifest ({error}); delete {folder} to prepare it again.")


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Write the manifest, which marks a prepared folder as complete."""
    write_atomic(epath.Path(folder) / MANIFEST, json.dumps(asdict(manifest), indent=1).encode())


@contextlib.contextmanager
def record_writer(path: str) -> Iterator[Any]:
    """Context manager for an ArrayRecord writer; the file gets its name when it is complete.

    Raises UserError if the file cannot be written, for example on a full disk, and then leaves no
    partial file.
    """
    with contextlib.ExitStack() as stack:
        draft = f"{path}.draft"
        if "://" in path:  # ArrayRecord writes local files only.
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            draft = os.path.join(folder, "records")
        try:
            writer = array_record_module.ArrayRecordWriter(draft, WRITER_OPTIONS)
            yield writer
            writer.close()
            if "://" in path:
                epath.Path(draft).copy(path, overwrite=True)
            else:
                os.replace(draft, path)
        except BaseException as error:
            pathlib.Path(draft).unlink(missing_ok=True)
            if isinstance(error, RuntimeError | OSError):  # RuntimeError: ArrayRecord's own
                reason = str(error).splitlines()[0]
                raise storage_error(error, f"{path}: cannot be written ({reason}).") from None
            raise


def cut_rows(
    documents: Iterable[Integer[np.ndarray, " tokens"]], row_tokens: int
) -> Iterator[UInt32[np.ndarray, " row_tokens"]]:
    """Yield the concatenated documents cut into rows; a tail shorter than a row comes last."""
    held: list[np.ndarray] = []
    count = 0
    for document in documents:
        held.append(document)
        count += len(document)
        if count >= row_tokens:
            flat = np.concatenate(held).astype(TOKEN, copy=False)
            whole = count // row_tokens * row_tokens
            yield from flat[:whole].reshape(-1, row_tokens)
            held, count = [flat[whole:]], count - whole
    if count:
        yield np.concatenate(held).astype(TOKEN, copy=False)


class Records:
    """The records of several ArrayRecord files under one index; files are opened on first use.

    ArrayRecord reads ``gs://`` paths by byte ranges, so nothing is copied to the local disk.
    """

    def __init__(self, folder: str, shards: Sequence[tuple[str, int]]) -> None:
        self._paths = [str(epath.Path(folder) / name) for name, _ in shards]
        self._ends = np.cumsum([records for _, records in shards], dtype=np.int64)
        self._readers: list[Any] | None = None

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, indices: np.ndarray) -> list[bytes]:
        """Return the records at ``indices``, in that order."""
        readers = self._readers or self._open()
        shard = np.searchsorted(self._ends, indices, side="right")
        own = indices - np.concatenate([[0], self._ends])[shard]
        size = -(-len(indices) // READS_AT_A_TIME)
        groups = (np.flatnonzero(shard == number) for number in np.unique(shard))
        pieces = [group[at : at + size] for group in groups for at in range(0, len(group), size)]

        def read_piece(piece: np.ndarray) -> list[bytes]:
            number = shard[piece[0]]
            with _shard_errors(self._paths[number]):
                return readers[number].read(own[piece].tolist())

        records: list[bytes] = [b""] * len(indices)
        for piece, found in zip(pieces, _READS.map(read_piece, pieces), strict=True):
            for index, record in zip(piece, found, strict=True):
                records[index] = record
        return records

    def _open(self) -> list[Any]:
        counts = np.diff(self._ends, prepend=0).tolist()
        self._readers = list(_READS.map(_open_reader, self._paths, counts))
        return self._readers


def _open_reader(path: str, records: int) -> Any:
    """Return a reader of the file; raise UserError if it does not hold ``records`` records."""

    def open_and_count() -> tuple[Any, int]:
        reader = array_record_module.ArrayRecordReader(
            path, READER_OPTIONS, file_reader_buffer_size=READER_BUFFER_BYTES
        )
        if not reader.ok():
            # Reading raises an error with the reason, which the constructor does not report.
            reader.read([0])
        return reader, reader.num_records()

    with _shard_errors(path):
        # ArrayRecord's client for gs:// retries for a quarter of an hour.
        reader, found = (
            call_with_timeout(path, open_and_count) if "://" in path else open_and_count()
        )
        if found != records:
            raise ValueError(f"{found} records, {records} expected")
    return reader


@contextlib.contextmanager
def _shard_errors(path: str) -> Iterator[None]:
    """Turn the errors of ArrayRecord into UserError, transient ones into UnreachableError."""
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:  # the types that ArrayRecord raises
        reason = str(error).splitlines()[0]
        if describes_transient(reason):
            raise UnreachableError(f"{path}: cannot be read now ({reason}).") from None
        if "HTTP status" in reason:
            raise UserError(f"{path}: {reason}; give this machine's account read access.") from None
        raise UserError(f"{path}: {reason}; delete its folder to prepare it again.") from None


class TokenRows:
    """The rows of a prepared corpus, sequence_length + 1 tokens each, by index."""

    def __init__(self, folder: str) -> None:
        manifest = require_manifest(folder)
        self._records = Records(folder, manifest.shards)
        self._row_tokens = manifest.sequence_length + 1

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: Integer[np.ndarray, " n"]) -> UInt32[np.ndarray, "n row_tokens"]:
        """Return rows ``indices`` as uint32 (n, sequence_length + 1)."""
        content = b"".join(self._records.read(indices))
        return np.frombuffer(content, TOKEN).reshape(len(indices), self._row_tokens)


class HeldoutDocuments:
    """The documents of a prepared held-out corpus by index."""

    def __init__(self, folder: str) -> None:
        self._records = Records(folder, require_manifest(folder).shards)

    def __len__(self) -> int:
        return len(self._records)

    def read(
        self, indices: Integer[np.ndarray, " n"]
    ) -> list[tuple[Integer[np.ndarray, " tokens"], int]]:
        """Return tokens (with BOS and EOS) and source bytes (UTF-8) of documents ``indices``."""
        return [
            (np.frombuffer(record, TOKEN, offset=8), int.from_bytes(record[:8], "little"))
            for record in self._records.read(indices)
        ]


def heldout_record(tokens: Integer[np.ndarray, " tokens"], source_bytes: int) -> bytes:
    """Return the record of a held-out document that ``HeldoutDocuments`` reads."""
    return source_bytes.to_bytes(8, "little") + tokens.astype(TOKEN).tobytes()


def require_manifest(folder: str) -> Manifest:
    """Return the manifest of a prepared folder; raise UserError if it is not prepared."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} is not prepared; run `python -m llama_cpt.prepare CONFIG`.")
    return manifest
