"""Selection of the documents that the options --drop-overlap and --drop-duplicates leave out."""

from collections.abc import Sequence
import hashlib
import json
import os

from etils import epath
import numpy as np

from llama_cpt.config.schema import DataConfig, TrainConfig
from llama_cpt.corpus_report.duplicates import find_duplicates
from llama_cpt.corpus_report.overlap import CHARACTERS, SHORT_CHARACTERS, SHORT_WORDS, WORDS
from llama_cpt.corpus_report.report import make_index
from llama_cpt.corpus_report.scan import CorpusScan, scan_corpora
from llama_cpt.data.prepare.dropped import (
    DUPLICATE,
    OVERLAP,
    REASONS,
    DroppedDocuments,
    DroppedLists,
    dropped_documents,
    read_dropped,
    write_dropped,
)
from llama_cpt.data.rows import read_manifest
from llama_cpt.data.sources.files import find_sources, with_digests
from llama_cpt.runtime.errors import UserError

_RULES = 2
"""Version of the rules by which documents are left out. A new version selects them again."""


def select_dropped(config: TrainConfig, reasons: Sequence[str], eval_data: str) -> None:
    """Write the lists of documents that are left out for ``reasons`` to ``data.prepared``.

    The lists do not change if they were written for the same sources and evaluation files. Raises
    UserError if a corpus in the folder was prepared without its list or with a different one.
    """
    stored = read_dropped(config.data.prepared)
    key = _key(config.data, reasons, eval_data)
    if stored.key == key:
        return
    index = make_index(config, eval_data) if OVERLAP in reasons else None
    if OVERLAP in reasons and index is None:
        raise UserError(
            "--drop-overlap has no text to compare with; set data.heldout or --eval-data."
        )
    scans = scan_corpora(config.data, index, sample=False)
    lists = _lists(scans, duplicates=DUPLICATE in reasons)
    for name, dropped in lists.items():
        folder = epath.Path(config.data.prepared) / name
        manifest = read_manifest(str(folder))
        if manifest and manifest.dropped != dropped.digest:
            raise UserError(
                f"{folder} was prepared without leaving out the same documents; set data.prepared "
                f"to a new folder, or delete {folder} to prepare the corpus again. Runs that used "
                "the deleted rows cannot resume."
            )
    kept = {name: one for name, one in stored.corpora.items() if name not in lists}
    sources = {name: one for name, one in stored.sources.items() if name in kept}
    for scan in scans:
        known = stored.sources.get(scan.name, ())
        sources[scan.name] = with_digests(scan.name, scan.sources.stats(), known)
    options = tuple(sorted(reasons))
    write_dropped(config.data.prepared, DroppedLists(options, key, kept | lists, sources))


def _lists(scans: Sequence[CorpusScan], *, duplicates: bool) -> dict[str, DroppedDocuments]:
    """Return the documents of each corpus that are left out."""
    repeated = find_duplicates(scans) if duplicates else None
    lists = {}
    for number, scan in enumerate(scans):
        reasons = np.full(scan.documents, -1)
        if repeated:
            reasons[repeated.repeated(number)] = REASONS.index(DUPLICATE)
        reasons[[hit.document for hit in scan.overlaps]] = REASONS.index(OVERLAP)
        at = np.flatnonzero(reasons >= 0)
        files, numbers = (np.array(one, np.int64)[at] for one in (scan.files, scan.numbers))
        lists[scan.name] = dropped_documents(files, numbers, reasons[at])
    return lists


def _key(data: DataConfig, reasons: Sequence[str], eval_data: str) -> str:
    """Return a digest of the options and of the sizes and times of all files that are read."""
    corpora = [(corpus, data.kind_of(corpus)) for corpus in data.additional + data.original]
    benchmarks = []
    if OVERLAP in reasons:
        corpora += [(corpus, "held-out") for corpus in data.heldout]
        found = os.walk(eval_data) if eval_data else ()
        files = sorted(os.path.join(folder, name) for folder, _, names in found for name in names)
        stats = [(file, os.stat(file)) for file in files]
        benchmarks = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    content = {
        "rules": _RULES,
        "reasons": sorted(reasons),
        "sizes": (WORDS, CHARACTERS, SHORT_WORDS, SHORT_CHARACTERS),
        "chat": sorted(data.chat.drop_fields) if data.chat else None,
        "corpora": [
            (corpus.name, kind, corpus.text_field, find_sources(corpus).stats())
            for corpus, kind in corpora
        ],
        "benchmarks": benchmarks,
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
