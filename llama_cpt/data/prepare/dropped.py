"""Documents that are left out of the rows: copies of evaluation text and repeated documents.

The documents are listed in a file in the folder ``data.prepared``. All commands that prepare
corpora in this folder read the file, so that they write the same rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
import hashlib
import json
from typing import Any

from etils import epath

from llama_cpt.data.rows import MAX_MANIFEST_BYTES
from llama_cpt.data.sources.blocks import Block
from llama_cpt.data.sources.files import Sources
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_json_object

DROPPED_FILE = "dropped.json"
OVERLAP, DUPLICATE = "overlap", "duplicate"
"""Reasons for which documents are left out."""
_FLAGS = {OVERLAP: "overlap", DUPLICATE: "duplicates"}

# Number of a document in its file -> reason, such as "overlap".
Reasons = Mapping[int, str]


@dataclass(frozen=True)
class DroppedDocuments:
    """The documents of a corpus that are left out of its rows."""

    files: Mapping[int, Reasons]
    """Reasons by the number of the document, for each index of a source file. The numbers are
    those of ``Document.number``."""

    @property
    def digest(self) -> str:
        """Digest of the list; empty if no document is left out."""
        if not self.files:
            return ""
        listed = [(file, sorted(numbers.items())) for file, numbers in sorted(self.files.items())]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()

    def by_path(self, sources: Sources) -> dict[str, Reasons]:
        """Return the reasons by the path of the source file, as in ``Block.path``."""
        paths = (sources.dataset,) if sources.dataset else sources.files
        return {paths[file]: numbers for file, numbers in self.files.items()}


NOTHING_DROPPED = DroppedDocuments({})


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


def dropped_in(block: Block, by_path: Mapping[str, Reasons]) -> Reasons:
    """Return the reasons of the documents in ``block`` that are left out, by number."""
    numbers = by_path.get(block.path, {})
    size = block.raw.count(b"\n") + 1 if isinstance(block.raw, bytes) else len(block.raw)
    block_numbers = range(block.first, block.first + size) if numbers else ()
    return {number: numbers[number] for number in block_numbers if number in numbers}


NO_LISTS = DroppedLists((), "", {}, {})


def read_dropped(prepared: str) -> DroppedLists:
    """Return the lists in the folder ``prepared``, which are empty if there is no file.

    Raises UserError if the file is not valid.
    """
    path = epath.Path(prepared) / DROPPED_FILE
    if not path.exists():
        return NO_LISTS
    remedy = "delete the folder to prepare the corpora again"
    values = read_json_object(str(path), remedy, max_bytes=MAX_MANIFEST_BYTES)
    try:
        corpora = {name: _documents(files) for name, files in values["corpora"].items()}
        keys = ("path", "bytes", "modified", "digest")
        sources = {
            name: [{key: one[key] for key in keys} for one in files]
            for name, files in values["sources"].items()
        }
        options = tuple(map(str, values["options"]))
        return DroppedLists(options, str(values["key"]), corpora, sources)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: not a list of dropped documents; {remedy}.") from None


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
    values = {
        "options": lists.options,
        "key": lists.key,
        "corpora": {name: one.files for name, one in lists.corpora.items()},
        "sources": dict(lists.sources),
    }
    content = json.dumps(values).encode()
    if len(content) > MAX_MANIFEST_BYTES:
        raise UserError(
            f"{prepared}: too many documents to list ({len(content):,} bytes of at most "
            f"{MAX_MANIFEST_BYTES:,}); remove duplicates before prepare, as with datatrove."
        )
    folder = epath.Path(prepared)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / DROPPED_FILE, content)


def _documents(files: Mapping[str, Mapping[str, Any]]) -> DroppedDocuments:
    return DroppedDocuments(
        {
            int(file): {int(number): str(reason) for number, reason in numbers.items()}
            for file, numbers in files.items()
        }
    )
