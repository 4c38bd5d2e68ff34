"""Token rows and held-out documents as ArrayRecord files: written once, read by index.

A row is sequence_length + 1 little-endian uint32 tokens; rows do not overlap. A held-out document
is a record of its own: its source's UTF-8 bytes as uint64, then its tokens.
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
# Rows are read singly, in random order, and a group is decompressed as a whole: with 8 rows a group
# a row costs four times the time. Rows of 8192 Llama-3 tokens of Chinese, one core, thousand rows a
# second read at random and written, bytes a token: uncompressed 28, 24, 4.01; snappy 18, 14, 2.02;
# zstd:1 21, 8, 1.66. Snappy halves disk and network and costs prepare 3 % of its time where zstd
# costs 6 %; all of them read many times what a loader needs.
WRITER_OPTIONS = "group_size:1,snappy"
# What is read ahead of a random read is never used.
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
READER_BUFFER_BYTES = 32 << 10
# A row from a bucket, or a mounted one, takes some 50 ms, whatever its size: one after the other,
# four batches at a time, that is 80 rows a second, and a 1B model on eight v6e chips learns 50.
READS_AT_A_TIME = 32
_READS = ThreadPoolExecutor(READS_AT_A_TIME, thread_name_prefix="rows")
TOKEN = np.dtype("<u4")


@dataclass(frozen=True)
class Manifest:
    """What ``prepare`` made of one corpus; a folder without it is unfinished."""

    corpus: str
    tokenizer: str
    """Fingerprint of the vocabulary."""
    sequence_length: int
    """0 for held-out documents."""
    text_field: str
    bad_documents: str
    sources: list[dict[str, Any]]
    """``{"path", "bytes", "modified", "digest"}`` of each file."""
    shards: list[tuple[str, int]]
    """File and records of each shard."""
    documents: int
    tokens: int
    """All tokens, BOS and EOS included."""
    dropped_tokens: int
    """Tails too short for a row; of chats, what a row cannot hold."""
    source_bytes: int
    characters: int
    skipped: dict[str, int]
    """Bad documents by reason."""
    checked_documents: int
    """Documents decoded again to see whether the tokenizer keeps them."""
    lossy_documents: int
    """Those of them that it changed."""
    dataset: str = ""
    """The source where it is a TFDS name."""
    digest: str = ""
    """SHA-256 over the records of all shards."""
    chat: dict[str, Any] | None = None
    """``chat_units.ChatRecipe`` of chat data; None for documents."""
    formats: dict[str, int] = field(default_factory=dict)
    """Chats by format."""
    units: int = 0
    """The most that a row has of conversations, pairs, judged answers."""
    chat_counts: dict[str, int] = field(default_factory=dict)
    """Places taken, tokens learnt, chats dropped and truncated: ``corpus_shards.CHAT_COUNTS``."""

    @property
    def rows(self) -> int:
        """Records in all shards."""
        return sum(rows for _, rows in self.shards)

    @property
    def fingerprint(self) -> str:
        """Changes when what a run reads changes; does not depend on where anything lies."""
        return f"{self.tokenizer} {self.sequence_length} {self.rows} {self.digest}"

    def lossy(self) -> str:
        """That the tokenizer changes documents, in a sentence; empty where it keeps them."""
        if not self.lossy_documents:
            return ""
        share = self.lossy_documents / self.checked_documents
        heldout = "" if self.sequence_length else "held-out "
        return (
            f"lossy: the tokenizer changes {share:.1%} of the documents of {heldout}{self.corpus} "
            f"({self.checked_documents:,} checked)"
        )


def read_manifest(folder: str) -> Manifest | None:
    """The manifest of a prepared folder; None where preparing has not finished."""
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
    raise UserError(f"{path}: not a manifest ({error}); delete {folder} to prepare it anew.")


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Make a prepared folder complete."""
    write_atomic(epath.Path(folder) / MANIFEST, json.dumps(asdict(manifest), indent=1).encode())


@contextlib.contextmanager
def record_writer(path: str) -> Iterator[Any]:
    """An ArrayRecord writer; the file bears its name once it is whole.

    Raises UserError where it cannot be written, such as on a full disk; nothing of it is left.
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
    """Documents one after the other, cut into rows; a tail that fills no row comes last, short."""
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
    """The records of several ArrayRecord files by one index; opened on first use.

    ArrayRecord reads ``gs://`` by ranges: nothing is copied to this machine's disk.
    """

    def __init__(self, folder: str, shards: Sequence[tuple[str, int]]) -> None:
        self._paths = [str(epath.Path(folder) / name) for name, _ in shards]
        self._ends = np.cumsum([records for _, records in shards], dtype=np.int64)
        self._readers: list[Any] | None = None

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, indices: np.ndarray) -> list[bytes]:
        """The records at ``indices``, in their order."""
        readers = self._readers or self._open()
        shard = np.searchsorted(self._ends, indices, side="right")
        own = indices - np.concatenate([[0], self._ends])[shard]
        size = -(-len(indices) // READS_AT_A_TIME)
        groups = (np.flatnonzero(shard == number) for number in np.unique(shard))
        pieces = [group[at : at + size] for group in groups for at in range(0, len(group), size)]

        def found(places: np.ndarray) -> list[bytes]:
            number = shard[places[0]]
            with _broken_shard(self._paths[number]):
                return readers[number].read(own[places].tolist())

        records: list[bytes] = [b""] * len(indices)
        for places, some in zip(pieces, _READS.map(found, pieces), strict=True):
            for place, record in zip(places, some, strict=True):
                records[place] = record
        return records

    def _open(self) -> list[Any]:
        counts = np.diff(self._ends, prepend=0).tolist()
        self._readers = list(_READS.map(_opened, self._paths, counts))
        return self._readers


def _opened(path: str, records: int) -> Any:
    """A reader of the file, which holds ``records``."""

    def open_and_count() -> tuple[Any, int]:
        reader = array_record_module.ArrayRecordReader(
            path, READER_OPTIONS, file_reader_buffer_size=READER_BUFFER_BYTES
        )
        if not reader.ok():
            reader.read([0])  # Raises with the reason, which opening keeps to itself.
        return reader, reader.num_records()

    with _broken_shard(path):
        # Its client for gs:// tries again for a quarter of an hour.
        reader, found = (
            call_with_timeout(path, open_and_count) if "://" in path else open_and_count()
        )
        if found != records:
            raise ValueError(f"{found} records, {records} expected")
    return reader


@contextlib.contextmanager
def _broken_shard(path: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:  # what ArrayRecord raises
        reason = str(error).splitlines()[0]
        if describes_transient(reason):
            raise UnreachableError(f"{path}: cannot be read now ({reason}).") from None
        if "HTTP status" in reason:
            raise UserError(f"{path}: {reason}; may this machine's account read it?") from None
        raise UserError(f"{path}: {reason}; delete its folder to prepare it anew.") from None


class TokenRows:
    """A prepared corpus: rows of sequence_length + 1 tokens by index."""

    def __init__(self, folder: str) -> None:
        manifest = require_manifest(folder)
        self._records = Records(folder, manifest.shards)
        self._row_tokens = manifest.sequence_length + 1

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: Integer[np.ndarray, " n"]) -> UInt32[np.ndarray, "n row_tokens"]:
        """Rows ``indices``."""
        content = b"".join(self._records.read(indices))
        return np.frombuffer(content, TOKEN).reshape(len(indices), self._row_tokens)


class HeldoutDocuments:
    """A prepared held-out corpus: whole documents by index."""

    def __init__(self, folder: str) -> None:
        self._records = Records(folder, require_manifest(folder).shards)

    def __len__(self) -> int:
        return len(self._records)

    def read(
        self, indices: Integer[np.ndarray, " n"]
    ) -> list[tuple[Integer[np.ndarray, " tokens"], int]]:
        """Tokens, BOS first and EOS last, and the source's UTF-8 bytes, of each of ``indices``."""
        return [
            (np.frombuffer(record, TOKEN, offset=8), int.from_bytes(record[:8], "little"))
            for record in self._records.read(indices)
        ]


def heldout_record(tokens: Integer[np.ndarray, " tokens"], source_bytes: int) -> bytes:
    """A held-out document as ``HeldoutDocuments`` reads it."""
    return source_bytes.to_bytes(8, "little") + tokens.astype(TOKEN).tobytes()


def require_manifest(folder: str) -> Manifest:
    """The manifest of a prepared folder; raises UserError where preparing has not finished."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} is not prepared: run `python -m llama_cpt.prepare CONFIG`.")
    return manifest
