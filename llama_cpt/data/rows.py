"""Token rows and held-out documents in ArrayRecord files, which are read by index.

A record of a training corpus of documents is a row: sequence_length + 1 tokens as little-endian
uint32. Rows do not overlap. The highest bit of the first token of each document is set. A record
of a held-out corpus is a document: the number of UTF-8 bytes of its text as little-endian uint64,
then its tokens.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import contextlib
from dataclasses import asdict, dataclass, field
import json
import os
import pathlib
import tempfile
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from etils import epath
from jaxtyping import Integer, UInt32
import numpy as np

from llama_cpt.config.fields import from_dict
from llama_cpt.data.tokenizer.document_tokens import DocumentTokens
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.errors import UserError, first_line
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.runtime.retry import describes_transient
from llama_cpt.runtime.shown_command import command_line
from llama_cpt.runtime.storage import UnreachableError, call_with_timeout, storage_error

MANIFEST = "manifest.json"
# A manifest lists all source files, and a corpus can have a million of them.
MAX_MANIFEST_BYTES = 1 << 28
# Rows are read individually in random order, and ArrayRecord decompresses a whole group to read one
# row: with 8 rows per group, reading a row takes four times as long. The compressions were
# measured on one core with rows of 8192 Llama 3 tokens of Chinese. Random reads in thousand rows
# per second, writes in thousand rows per second, and bytes per token are: uncompressed 28, 24,
# 4.01; snappy 18, 14, 2.02; zstd:1 21, 8, 1.66. Snappy halves the use
# of disk and network and takes 3 % of the time of prepare; zstd takes 6 %. All three read much
# faster than a loader needs.
WRITER_OPTIONS = "group_size:1,snappy"
# Read-ahead is off, because rows are read in random order.
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
READER_BUFFER_BYTES = 32 << 10
# Number of rows that are read concurrently. Reading a row from a bucket, mounted or not, takes
# about 50 ms for any size of the row. The loader reads four batches at the same time; if each batch
# read one row at a time, the loader would read 80 rows per second. A 1B model on eight v6e chips
# consumes 50 rows per second.
READS_AT_A_TIME = 32
_READS = ThreadPoolExecutor(READS_AT_A_TIME, thread_name_prefix="rows")
TOKEN = np.dtype("<u4")
DOCUMENT_START = np.uint32(1 << 31)
"""The bit that marks the first token of a document in a row."""
TOKEN_BITS = ~DOCUMENT_START
VERSION = 2
"""The version of the manifest format. In rows of version 1, first tokens are not marked."""


@dataclass(frozen=True)
class Manifest:
    """The description of a prepared corpus; a folder without a manifest is incomplete."""

    corpus: str
    tokenizer: str
    """Fingerprint of the tokenizer."""
    sequence_length: int
    """Number of inputs per row, as in ``data.sequence_length``; 0 for held-out documents."""
    text_field: str
    bad_documents: str
    sources: list[dict[str, Any]]
    """One dict per source file with the keys ``path``, ``bytes``, ``modified`` and ``digest``."""
    shards: list[tuple[str, int]]
    """File name and number of records of each shard."""
    documents: int
    tokens: int
    """Number of tokens, including BOS and EOS."""
    dropped_tokens: int
    """Number of tokens that are not in a row: tokens at the ends of shards that do not fill a row,
    or, for chats, tokens of chats that are longer than a row."""
    source_bytes: int
    """Number of UTF-8 bytes of the text."""
    characters: int
    skipped: dict[str, int]
    """Number of bad documents by reason."""
    checked_documents: int
    """Number of documents that were decoded to check that the tokenizer preserves text."""
    lossy_documents: int
    """Number of checked documents that encoding and decoding change."""
    dataset: str = ""
    """The ``source`` of the corpus if it is a TFDS name, else empty."""
    digest: str = ""
    """SHA-256 over the digests of all shards."""
    chat: dict[str, Any] | None = None
    """Fields of ``chat.examples.ChatSpec``; None if the corpus contains documents."""
    formats: dict[str, int] = field(default_factory=dict)
    """Number of chats by format."""
    units: int = 0
    """Maximum number of examples (conversations, pairs or rated answers) per row."""
    chat_counts: dict[str, int] = field(default_factory=dict)
    """Counts of truncation and packing; ``prepare.shards.CHAT_COUNTS`` lists their names."""
    document_tokens: DocumentTokens | None = None
    """The tokens before and after each document; None for chat data, and for version 1."""
    version: int = 1
    """The version of the format; see ``VERSION``."""
    former_tokenizer: str = ""
    """Fingerprint of the tokenizer in version 1 if the manifest was converted; otherwise empty."""
    dropped_fields: dict[str, int] = field(default_factory=dict)
    """Number of chats in which a field of ``data.chat.drop_fields`` had content, by field."""
    dropped: str = ""
    """Digest of the list of documents that are left out; empty if none is left out."""
    dropped_documents: dict[str, int] = field(default_factory=dict)
    """Number of valid documents that are left out, by reason: overlap or duplicate."""
    without_checksums: list[str] = field(default_factory=list)
    """Paths of the Parquet source files whose pages have no checksums."""

    @property
    def rows(self) -> int:
        """Number of records in all shards."""
        return sum(rows for _, rows in self.shards)

    @property
    def fingerprint(self) -> str:
        """A string that changes if the rows change but does not depend on paths."""
        tokenizer = self.former_tokenizer or self.tokenizer
        return f"{tokenizer} {self.sequence_length} {self.rows} {self.digest}"

    def lossy(self) -> str:
        """Return a message if the tokenizer does not preserve the text, else an empty string."""
        if not self.lossy_documents:
            return ""
        share = self.lossy_documents / self.checked_documents
        heldout = "" if self.sequence_length else "held-out "
        return (
            f"lossy: the tokenizer changes {share:.1%} of the documents of {heldout}{self.corpus} "
            f"({self.checked_documents:,} checked)"
        )


def read_manifest(folder: str) -> Manifest | None:
    """Return the manifest in the folder of a prepared corpus, or None if there is no manifest.

    Raises UserError if the file is not a valid manifest.
    """
    path = epath.Path(folder) / MANIFEST
    if not path.exists():
        return None
    remedy = f"delete {folder} to prepare the corpus again"
    values = read_json_object(str(path), remedy, max_bytes=MAX_MANIFEST_BYTES)
    try:
        if "learn" in (values.get("chat") or {}):  # The name of the field in earlier versions.
            values["chat"]["loss_on"] = values["chat"].pop("learn")
        if values.get("chat"):
            values["chat"].setdefault("drop_fields", "")
        if tokens := values.get("document_tokens"):
            values["document_tokens"] = DocumentTokens(tuple(tokens[0]), tokens[1])
        manifest = from_dict(Manifest, values, "manifest")
        _validate(manifest)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        reason = first_line(error).rstrip(".")
        raise UserError(f"{path}: not a manifest ({reason}); {remedy}.") from None
    return manifest


def _validate(manifest: Manifest) -> None:
    """Raise ValueError if ``manifest`` contains a value that ``prepare`` does not write."""
    for source in manifest.sources:
        if not all(isinstance(source.get(name), str) for name in ("path", "modified", "digest")):
            raise ValueError("a source has no path, time or digest")
        if type(source.get("bytes")) is not int:
            raise ValueError("a source has no size")
    if any(rows < 0 or "/" in name for name, rows in manifest.shards):
        raise ValueError("a shard is not a file name and a number of records")
    if around := manifest.document_tokens:
        if not all(type(token) is int for token in (*around.begin, around.end)):
            raise ValueError("document_tokens are not integers")


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Write the manifest, which marks the corpus in ``folder`` as complete."""
    write_atomic(epath.Path(folder) / MANIFEST, json.dumps(asdict(manifest), indent=1).encode())


@contextlib.contextmanager
def record_writer(path: str) -> Generator[Any]:
    """Context manager that yields an ArrayRecord writer and creates the file ``path`` on exit.

    Raises UserError if the file cannot be written, for example because the disk is full. Incomplete
    files are deleted.
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
            if isinstance(error, RuntimeError | OSError):  # ArrayRecord raises RuntimeError.
                reason = first_line(error)
                raise storage_error(error, f"{path}: cannot be written ({reason}).") from None
            raise


def cut_rows(
    documents: Iterable[Integer[np.ndarray, " tokens"]], row_tokens: int
) -> Iterator[UInt32[np.ndarray, " row_tokens"]]:
    """Yield the concatenated documents in rows of ``row_tokens`` tokens.

    The last row is shorter if the number of tokens is not a multiple of ``row_tokens``.
    """
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
    """Random access to the records of several ArrayRecord files, which are opened on first use.

    ArrayRecord reads byte ranges of ``gs://`` objects, so no file is copied to the local disk.
    """

    def __init__(self, folder: str, shards: Sequence[tuple[str, int]]) -> None:
        self._paths = [str(epath.Path(folder) / name) for name, _ in shards]
        self._ends = np.cumsum([records for _, records in shards], dtype=np.int64)
        self._readers: list[Any] | None = None

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, indices: np.ndarray) -> list[bytes]:
        """Return the records at ``indices``, in the order of ``indices``."""
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

    def place(self, index: int) -> tuple[str, int]:
        """Return the path of the file with the record at ``index``, and its index in the file."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return self._paths[shard], index - int(self._ends[shard - 1] if shard else 0)

    def _open(self) -> list[Any]:
        """Open all files and return their readers."""
        counts = np.diff(self._ends, prepend=0).tolist()
        self._readers = list(_READS.map(_open_reader, self._paths, counts))
        return self._readers


def _open_reader(path: str, records: int) -> Any:
    """Return a reader of an ArrayRecord file.

    Raises UserError if the file does not contain exactly ``records`` records.
    """

    def open_and_count() -> tuple[Any, int]:
        reader = array_record_module.ArrayRecordReader(
            path, READER_OPTIONS, file_reader_buffer_size=READER_BUFFER_BYTES
        )
        if not reader.ok():
            # A read raises an error with the reason; the constructor does not report the reason.
            reader.read([0])
        return reader, reader.num_records()

    with _shard_errors(path):
        # ArrayRecord retries requests to gs:// for 15 minutes, so these calls get a timeout.
        reader, found = (
            call_with_timeout(path, open_and_count) if "://" in path else open_and_count()
        )
        if found != records:
            raise ValueError(f"{found} records, {records} expected")
    return reader


@contextlib.contextmanager
def _shard_errors(path: str) -> Generator[None]:
    """Context manager that turns ArrayRecord's errors into UserError or UnreachableError.

    Transient errors become UnreachableError.
    """
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:  # The types that ArrayRecord raises.
        reason = first_line(error)
        if describes_transient(reason):
            raise UnreachableError(f"{path}: cannot be read now ({reason}).") from None
        if "HTTP status" in reason:
            raise UserError(f"{path}: {reason}; give this machine's account read access.") from None
        raise UserError(
            f"{path}: {reason}; delete its folder to prepare the corpus again."
        ) from None


class TokenRows:
    """Random access to the rows of a prepared corpus; a row has sequence_length + 1 tokens.

    The highest bit of the first token of each document is set (``DOCUMENT_START``).
    """

    def __init__(self, folder: str) -> None:
        manifest = require_manifest(folder)
        self._records = Records(folder, manifest.shards)
        self._row_tokens = manifest.sequence_length + 1
        self._begin = None
        if manifest.former_tokenizer and manifest.document_tokens:
            self._begin = manifest.document_tokens.begin[0]

    def __len__(self) -> int:
        return len(self._records)

    def place(self, index: int) -> tuple[str, int]:
        """Return the path of the file with the row at ``index``, and the row's index in it."""
        return self._records.place(index)

    def read(self, indices: Integer[np.ndarray, " n"]) -> UInt32[np.ndarray, "n row_tokens"]:
        """Return the rows at ``indices`` as uint32 (n, sequence_length + 1)."""
        content = b"".join(self._records.read(indices))
        rows = np.frombuffer(content, TOKEN).reshape(len(indices), self._row_tokens)
        if self._begin is not None:
            rows = np.where(rows == self._begin, rows | DOCUMENT_START, rows)
        return rows


class HeldoutDocuments:
    """Random access to the documents of a prepared held-out corpus."""

    def __init__(self, folder: str) -> None:
        self._records = Records(folder, require_manifest(folder).shards)

    def __len__(self) -> int:
        return len(self._records)

    def read(
        self, indices: Integer[np.ndarray, " n"]
    ) -> list[tuple[Integer[np.ndarray, " tokens"], int]]:
        """Return the documents at ``indices`` as pairs (tokens, source bytes).

        The tokens are one token before the text (usually BOS), the tokens of the text, and EOS. The
        source bytes are the number of UTF-8 bytes of the text.
        """
        return [
            (np.frombuffer(record, TOKEN, offset=8), int.from_bytes(record[:8], "little"))
            for record in self._records.read(indices)
        ]


def heldout_record(tokens: Integer[np.ndarray, " tokens"], source_bytes: int) -> bytes:
    """Return a held-out document as a record, in the format that ``HeldoutDocuments`` reads."""
    return source_bytes.to_bytes(8, "little") + tokens.astype(TOKEN).tobytes()


def require_manifest(folder: str) -> Manifest:
    """Return the manifest in ``folder``; raise UserError if the corpus is not prepared."""
    manifest = read_manifest(folder)
    if manifest is None:
        command = command_line("prepare", "CONFIG")
        raise UserError(f"{folder} is not prepared; run `{command}`.")
    return manifest
