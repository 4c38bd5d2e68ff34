"""Documents that are left out of the rows: copies of evaluation text and repeated documents.

The documents are listed in a file in the folder ``data.prepared``. All commands that prepare
corpora in this folder read the file, so that they write the same rows. The file contains JSON
Lines, compressed with gzip. The first line states the options; a line follows for each source file,
and lines with the numbers of documents in it: ``{"corpus": "en", "file": 0, "reason": "duplicate",
"documents": "7 12-15"}``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
import gzip
import hashlib
import io
import json
from typing import Any
import zlib

from etils import epath
from jaxtyping import Int64
import numpy as np

from llama_cpt.data.sources.blocks import Block
from llama_cpt.data.sources.files import Sources
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.errors import UserError

DROPPED_FILE = "dropped.jsonl.gz"
OVERLAP, DUPLICATE = "overlap", "duplicate"
REASONS = (DUPLICATE, OVERLAP)
"""Reasons for which documents are left out."""
_FLAGS = {OVERLAP: "overlap", DUPLICATE: "duplicates"}
_SOURCE_KEYS = ("path", "bytes", "modified", "digest")
_LINE_RANGES = 1000
"""Maximum number of ranges of documents per line."""
_MAX_LINE_BYTES = 1 << 20

# Number of a document in its file -> reason, such as "overlap".
Reasons = Mapping[int, str]
# First number, last number and index in REASONS of consecutive documents of a file, in ascending
# order.
Ranges = Int64[np.ndarray, "_ 3"]


@dataclass(frozen=True, eq=False)
class DroppedDocuments:
    """The documents of a corpus that are left out of its rows."""

    files: Mapping[int, Ranges] = field(default_factory=dict)
    """Ranges of documents for each index of a source file with such documents. The numbers are
    those of ``Document.number``."""

    @property
    def digest(self) -> str:
        """Digest of the list; empty if no document is left out."""
        if not self.files:
            return ""
        digest = hashlib.sha256()
        for file, ranges in sorted(self.files.items()):
            digest.update(f"{file} {len(ranges)} ".encode())
            digest.update(np.ascontiguousarray(ranges, np.dtype("<i8")).data)
        return digest.hexdigest()

    def by_path(self, sources: Sources) -> dict[str, Ranges]:
        """Return the ranges by the path of the source file, as in ``Block.path``."""
        paths = (sources.dataset,) if sources.dataset else sources.files
        return {paths[file]: ranges for file, ranges in self.files.items()}


NOTHING_DROPPED = DroppedDocuments()


def dropped_documents(
    files: Int64[np.ndarray, " documents"],
    numbers: Int64[np.ndarray, " documents"],
    reasons: Int64[np.ndarray, " documents"],
) -> DroppedDocuments:
    """Return the list of documents with these files, numbers and indices in REASONS.

    The documents are in the order of the corpus.
    """
    if not len(files):
        return NOTHING_DROPPED
    breaks = (np.diff(files) != 0) | (np.diff(numbers) != 1) | (np.diff(reasons) != 0)
    first = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    last = np.append(first[1:], len(files)) - 1
    ranges = np.stack([numbers[first], numbers[last], reasons[first]], axis=1)
    found, starts = np.unique(files[first], return_index=True)
    return DroppedDocuments(dict(zip(found.tolist(), np.split(ranges, starts[1:]), strict=True)))


@dataclass(frozen=True)
class DroppedLists:
    """The content of the file: the documents of all corpora, and the options that select them."""

    options: tuple[str, ...]
    """The reasons for which documents are left out, sorted."""
    key: str
    """Digest of everything on which the lists depend."""
    corpora: Mapping[str, DroppedDocuments]
    sources: Mapping[str, list[dict[str, Any]]]
    """Source files of each corpus with their sizes, times and digests, as in a manifest."""

    def check_sources(self, corpus: str, sources: list[dict[str, Any]]) -> None:
        """Raise UserError if the list of ``corpus`` is absent or belongs to other source files."""
        listed = [source["digest"] for source in self.sources.get(corpus, ())]
        if self.options and listed != [source["digest"] for source in sources]:
            flags = " ".join(f"--drop-{_FLAGS[reason]}" for reason in self.options)
            raise UserError(
                f"corpus {corpus!r}: {DROPPED_FILE} was written for other source files; run "
                f"prepare with {flags} again."
            )

    def of(self, corpus: str) -> DroppedDocuments:
        """Return the documents of a training corpus that are left out."""
        return self.corpora.get(corpus, NOTHING_DROPPED)


def dropped_in(block: Block, by_path: Mapping[str, Ranges]) -> Reasons:
    """Return the reasons of the documents in ``block`` that are left out, by number."""
    ranges = by_path.get(block.path)
    if ranges is None:
        return {}
    size = block.raw.count(b"\n") + 1 if isinstance(block.raw, bytes) else len(block.raw)
    end = block.first + size
    begin = np.searchsorted(ranges[:, 1], block.first)
    rows = ranges[begin : np.searchsorted(ranges[:, 0], end)].tolist()
    return {
        number: REASONS[reason]
        for first, last, reason in rows
        for number in range(max(first, block.first), min(last + 1, end))
    }


NO_LISTS = DroppedLists((), "", {}, {})


def read_dropped(prepared: str) -> DroppedLists:
    """Return the lists in the folder ``prepared``, which are empty if there is no file.

    Raises UserError if the file is not valid or has the format of an earlier version.
    """
    path = epath.Path(prepared) / DROPPED_FILE
    if not path.exists():
        if (former := path.with_name("dropped.json")).exists():
            raise UserError(
                f"{former}: an earlier version wrote this list of dropped documents; delete the "
                "folder to prepare the corpora again."
            )
        return NO_LISTS
    try:
        with path.open("rb") as compressed, gzip.open(compressed) as file:
            lines = iter(lambda: file.readline(_MAX_LINE_BYTES), b"")
            return _parse(json.loads(line) for line in lines)
    except (
        *(ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError),
        *(StopIteration, IndexError),
        *(EOFError, zlib.error, gzip.BadGzipFile),
    ):
        raise UserError(
            f"{path}: not a list of dropped documents; delete the folder to prepare the corpora "
            "again."
        ) from None


def _parse(lines: Iterator[Any]) -> DroppedLists:
    """Return the lists in the values of ``lines``; raise an error if a value is not valid."""
    head = next(lines)
    sources: dict[str, list[dict[str, Any]]] = {name: [] for name in head["corpora"]}
    found: dict[str, dict[int, list[Ranges]]] = {name: {} for name in sources}
    for line in lines:
        corpus = line["corpus"]
        if "path" in line:
            sources[corpus].append({key: line[key] for key in _SOURCE_KEYS})
            continue
        file, reason = int(line["file"]), REASONS.index(line["reason"])
        if not 0 <= file < len(sources[corpus]):
            raise ValueError("the source file is not listed")
        pairs = (text.partition("-") for text in line["documents"].split())
        rows = [(int(first), int(last or first), reason) for first, _, last in pairs]
        found[corpus].setdefault(file, []).append(np.array(rows, np.int64))
    if {name: len(files) for name, files in sources.items()} != head["corpora"]:
        raise ValueError("the file is not complete")
    corpora = {
        name: DroppedDocuments({file: _ordered(parts) for file, parts in sorted(files.items())})
        for name, files in found.items()
    }
    return DroppedLists(tuple(map(str, head["options"])), str(head["key"]), corpora, sources)


def _ordered(parts: list[Ranges]) -> Ranges:
    """Return the ranges of ``parts`` in ascending order; raise ValueError if two overlap."""
    ranges = np.concatenate(parts)
    ranges = ranges[np.argsort(ranges[:, 0])]
    first, last, _ = ranges.T
    if (last < first).any() or (first[1:] <= last[:-1]).any():
        raise ValueError("the ranges overlap")
    return ranges


def check_no_dropped(prepared: str) -> None:
    """Raise UserError if documents are left out of the rows in the folder ``prepared``."""
    if options := read_dropped(prepared).options:
        raise UserError(
            f"{epath.Path(prepared) / DROPPED_FILE} lists documents that are left out (reasons: "
            f"{', '.join(options)}); use the same options again, or set data.prepared to a new "
            "folder."
        )


def write_dropped(prepared: str, lists: DroppedLists) -> None:
    """Write the lists to the folder ``prepared``."""
    content = io.BytesIO()
    # Without a time, equal lists are equal files.
    with gzip.GzipFile("", "wb", fileobj=content, mtime=0) as file:
        for line in _lines(lists):
            file.write(json.dumps(line).encode() + b"\n")
    folder = epath.Path(prepared)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / DROPPED_FILE, content.getvalue())


def _lines(lists: DroppedLists) -> Iterator[dict[str, Any]]:
    """Yield the values of the lines of the file."""
    counts = {name: len(files) for name, files in lists.sources.items()}
    yield {"options": lists.options, "key": lists.key, "corpora": counts}
    for corpus, files in lists.sources.items():
        dropped = lists.of(corpus).files
        for file, source in enumerate(files):
            yield {"corpus": corpus, "file": file, **source}
            ranges = dropped.get(file, np.zeros((0, 3), np.int64))
            for number, reason in enumerate(REASONS):
                own = ranges[ranges[:, 2] == number]
                for at in range(0, len(own), _LINE_RANGES):
                    rows = own[at : at + _LINE_RANGES, :2].tolist()
                    texts = (str(a) if a == b else f"{a}-{b}" for a, b in rows)
                    line = {"corpus": corpus, "file": file, "reason": reason}
                    yield line | {"documents": " ".join(texts)}
