"""One pass over the documents of all training corpora: sizes, digests, overlaps and samples."""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
import hashlib
from typing import NamedTuple

from llama_cpt.config.schema import CorpusConfig, DataConfig
from llama_cpt.corpus_report.characters import normalize, script_counts
from llama_cpt.corpus_report.documents import ScannedDocument, read_documents
from llama_cpt.corpus_report.grams import words_and_characters
from llama_cpt.corpus_report.overlap import BATCH_CHARACTERS, OverlapIndex
from llama_cpt.corpus_report.sample import Sample, sample_keys
from llama_cpt.data.sources.documents import BadDocument
from llama_cpt.data.sources.files import Sources, find_sources
from llama_cpt.runtime.progress import Progress

DIGEST_BYTES = 16
PIECE_CHARACTERS = 1 << 20
"""Number of characters after which a long document is divided into pieces, to limit memory."""
OVERLAPPING = 4096
"""Number of characters at the start of a piece that are also at the end of the previous piece. An
n-gram of usual words is therefore in at least one piece."""


class _Piece(NamedTuple):
    """A document or a part of a long document."""

    document: int
    """Index of the document in the corpus."""
    is_first: bool
    text: str


@dataclass(frozen=True)
class Overlap:
    """A document that contains text of an evaluation set."""

    document: int
    """Index of the document in the corpus."""
    source: str
    """Name of the benchmark or held-out corpus."""
    place: str
    """Place in ``source`` of the question or document with the first common n-gram."""
    grams: int
    """Number of common n-grams."""


@dataclass
class CorpusScan:
    """Counts, digests and overlaps of the documents of a corpus."""

    corpus: CorpusConfig
    group: str
    """``additional`` or ``original``."""
    sources: Sources
    source_bytes: int = 0
    characters: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    """Number of bad documents by reason."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Number of documents by the number of bits of their length in characters."""
    scripts: Counter[str] = field(default_factory=Counter)
    """Number of letters by script."""
    digests: bytearray = field(default_factory=bytearray)
    """Digests of the identities of the documents, DIGEST_BYTES each."""
    files: "array[int]" = field(default_factory=lambda: array("i"))
    """Index of the source file of each document."""
    numbers: "array[int]" = field(default_factory=lambda: array("q"))
    """Line, row or element of each document, as in ``Document.number``."""
    overlaps: list[Overlap] = field(default_factory=list)
    """Overlaps, at most one for each document and source of evaluation text."""
    sample: Sample = field(default_factory=Sample)

    @property
    def name(self) -> str:
        """Name of the corpus."""
        return self.corpus.name

    @property
    def documents(self) -> int:
        """Number of valid documents."""
        return len(self.numbers)

    @property
    def overlapping(self) -> int:
        """Number of documents that overlap with evaluation text."""
        return len({hit.document for hit in self.overlaps})

    def digest(self, document: int) -> bytes:
        """Return the digest of the identity of a document."""
        return bytes(self.digests[document * DIGEST_BYTES : (document + 1) * DIGEST_BYTES])

    def place(self, document: int) -> str:
        """Return the file and the number of a document."""
        path = self.sources.dataset or self.sources.files[self.files[document]]
        number = self.numbers[document]
        return f"{path}:{number}" if number else path


def scan_corpora(
    config: DataConfig, index: OverlapIndex | None, *, sample: bool
) -> list[CorpusScan]:
    """Return a scan of each training corpus, in the order of the config.

    ``index`` contains the evaluation texts, or is None. ``sample`` is whether documents are sampled
    and scripts are counted, for the report.
    """
    scans = [
        CorpusScan(corpus, group, find_sources(corpus))
        for group, corpora in (("additional", config.additional), ("original", config.original))
        for corpus in corpora
    ]
    for scan in scans:
        megabytes = sum(stat["bytes"] for stat in scan.sources.stats()) / 1e6
        with Progress(f"read {scan.name}", megabytes, "MB") as progress:
            for batch in _batches(scan, config, progress):
                _add_texts(scan, batch, index, sample=sample)
    return scans


def _batches(scan: CorpusScan, config: DataConfig, progress: Progress) -> Iterator[list[_Piece]]:
    """Yield the pieces of all documents in batches of about ``BATCH_CHARACTERS``."""
    files = {path: number for number, path in enumerate(scan.sources.files)}
    held, size = [], 0
    chat = config.chat if config.kind_of(scan.corpus) == "conversations" else None
    documents = read_documents(scan.sources, scan.corpus.text_field, chat)
    for done, document in documents:
        progress.update(done / 1e6)
        if isinstance(document, BadDocument):
            scan.bad[document.reason] += 1
            continue
        number, text = scan.documents, document.text
        _count(scan, document, files.get(document.path, 0))
        for start in range(0, len(text), PIECE_CHARACTERS):
            piece = text[max(start - OVERLAPPING, 0) : start + PIECE_CHARACTERS]
            held.append(_Piece(number, start == 0, piece))
            size += len(piece)
            if size >= BATCH_CHARACTERS:
                yield held
                held, size = [], 0
    if held:
        yield held


def _count(scan: CorpusScan, document: ScannedDocument, file: int) -> None:
    scan.source_bytes += document.source_bytes
    scan.characters += document.characters
    scan.lengths[document.characters.bit_length()] += 1
    scan.digests += hashlib.blake2b(document.identity, digest_size=DIGEST_BYTES).digest()
    scan.files.append(file)
    scan.numbers.append(document.number)


def _add_texts(
    scan: CorpusScan, batch: list[_Piece], index: OverlapIndex | None, *, sample: bool
) -> None:
    """Add the overlaps, scripts and sampled documents of a batch to ``scan``."""
    if index is None and not sample:
        return
    points = normalize([piece.text for piece in batch])
    items = words_and_characters(points)
    if index:
        for match in index.find(*items):
            hit = Overlap(batch[match.document].document, *index.sources[match.text], match.grams)
            _add_overlap(scan.overlaps, hit)
    if not sample:
        return
    scan.scripts.update(script_counts(points))
    digests = [scan.digest(piece.document) for piece in batch]
    for at, key in scan.sample.below(sample_keys(digests, *items)):
        if batch[at].is_first:
            scan.sample.add(key, batch[at].document, digests[at], batch[at].text)


def _add_overlap(overlaps: list[Overlap], hit: Overlap) -> None:
    """Add ``hit``, or the number of its n-grams to a hit of an earlier piece of the document."""
    for at in range(len(overlaps) - 1, -1, -1):
        if overlaps[at].document != hit.document:
            break
        if overlaps[at].source == hit.source:
            overlaps[at] = replace(overlaps[at], grams=overlaps[at].grams + hit.grams)
            return
    overlaps.append(hit)
