"""The report on the corpora of a config: measurements, warnings, and the files of the report."""

from collections import Counter
from collections.abc import Sequence
import csv
from dataclasses import dataclass
import io
import itertools

from etils import epath

from llama_cpt.config.schema import TrainConfig
from llama_cpt.corpus_report.duplicates import Duplicates, find_duplicates
from llama_cpt.corpus_report.evaluation_texts import benchmark_texts, heldout_texts
from llama_cpt.corpus_report.overlap import OverlapIndex
from llama_cpt.corpus_report.sample import NO_LANGUAGE, languages, near_duplicates
from llama_cpt.corpus_report.scan import CorpusScan, scan_corpora
from llama_cpt.data.mixture import build_mixture
from llama_cpt.data.rows import Manifest, read_manifest
from llama_cpt.data.sources.files import describe_changes
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.data.tokenizer.document_tokens import document_tokens
from llama_cpt.runtime.atomic import write_atomic

PAGE, HITS = "report.html", "overlap.csv"
MAIN_LANGUAGE, FOREIGN_SHARE = 0.2, 0.05
"""Minimum share of a main language of an original corpus; minimum share of additional documents in
such a language that causes a warning."""
_TOKENIZED_DOCUMENTS = 200


@dataclass(frozen=True)
class CorpusReport:
    """The measurements of a corpus."""

    scan: CorpusScan
    manifest: Manifest | None
    """The manifest of the prepared rows; None if no rows are prepared from the same sources."""
    tokens: int
    """Number of tokens in ``manifest``; an estimate from the sampled documents without it."""
    rows: int
    """Number of rows in ``manifest``; an estimate from ``tokens`` without it."""
    epochs: float
    """Number of passes over the corpus in the run of the config."""
    languages: Counter[str]
    """Number of sampled documents by language."""
    overlaps: Counter[str]
    """Number of documents that overlap, by benchmark or held-out corpus."""

    @property
    def characters(self) -> int:
        """Number of characters of the text that has ``tokens``."""
        return self.manifest.characters if self.manifest else self.scan.characters


@dataclass(frozen=True)
class Report:
    """The measurements of all corpora of a config."""

    config: TrainConfig
    corpora: list[CorpusReport]
    index: OverlapIndex | None
    """The evaluation texts, or None if no held-out corpus and no benchmark was given."""
    duplicates: Duplicates
    near: dict[tuple[int, int], tuple[int, int]]
    """Near-duplicates by pair of corpora, as ``near_duplicates`` returns them."""

    @property
    def warnings(self) -> list[str]:
        """Sentences on properties of the corpora that usually need an action."""
        return [
            *_language_warnings(self.corpora),
            *(
                f"{one.scan.name}: {one.scan.overlapping:,} of {one.scan.documents:,} documents "
                "overlap with evaluation text."
                for one in self.corpora
                if one.scan.overlaps
            ),
            *(
                f"{one.scan.name}: {len(repeated):,} of {one.scan.documents:,} documents repeat an "
                "earlier document."
                for number, one in enumerate(self.corpora)
                if len(repeated := self.duplicates.repeated(number))
            ),
        ]


def make_index(config: TrainConfig, eval_data: str) -> OverlapIndex | None:
    """Return the index of the held-out text, and of the benchmarks in the folder ``eval_data``.

    Returns None if there is no such text. ``eval_data`` can be empty.
    """
    if not (config.data.heldout or eval_data):
        return None
    benchmarks = benchmark_texts(eval_data) if eval_data else []
    # An n-gram of several texts belongs to the first of them.
    return OverlapIndex(itertools.chain(benchmarks, heldout_texts(config.data)))


def make_report(config: TrainConfig, eval_data: str, tokenizer: Tokenizer) -> Report:
    """Read all corpora and return their measurements."""
    index = make_index(config, eval_data)
    scans = scan_corpora(config.data, index, sample=True)
    manifests = [_manifest(config, scan, tokenizer) for scan in scans]
    tokens = [
        manifest.tokens if manifest else _estimated_tokens(config, scan, tokenizer)
        for scan, manifest in zip(scans, manifests, strict=True)
    ]
    rows = [
        manifest.rows if manifest else count // (config.data.sequence_length + 1)
        for count, manifest in zip(tokens, manifests, strict=True)
    ]
    mixture = build_mixture(
        config.data,
        {scan.name: max(count, 1) for scan, count in zip(scans, rows, strict=True)},
        seed=config.seed,
        global_batch_size=config.global_batch_size,
    )
    epochs = mixture.epochs(config.num_steps * config.global_batch_size)
    corpora = [
        CorpusReport(
            scan,
            manifest,
            tokens=count,
            rows=size,
            epochs=float(passes),
            languages=languages(scan.sample),
            overlaps=Counter(hit.source for hit in scan.overlaps),
        )
        for scan, manifest, count, size, passes in zip(
            scans, manifests, tokens, rows, epochs, strict=True
        )
    ]
    near = near_duplicates([scan.sample for scan in scans])
    return Report(config, corpora, index, find_duplicates(scans), near)


def write_hits(report: Report, folder: epath.Path) -> None:
    """Write a table of all documents that overlap with evaluation text."""
    content = io.StringIO(newline="")
    table = csv.writer(content)
    table.writerow(("corpus", "document", "evaluation text", "place", "common n-grams"))
    for one in report.corpora:
        scan = one.scan
        table.writerows(
            (scan.name, scan.place(hit.document), hit.source, hit.place, hit.grams)
            for hit in scan.overlaps
        )
    write_atomic(folder / HITS, content.getvalue().encode("utf-8", "backslashreplace"))


def _manifest(config: TrainConfig, scan: CorpusScan, tokenizer: Tokenizer) -> Manifest | None:
    """Return the manifest of the rows that were prepared from the sources of ``scan``, or None."""
    data = config.data
    manifest = read_manifest(str(epath.Path(data.prepared) / scan.name))
    if manifest is None:
        return None
    is_chat = data.kind_of(scan.corpus) == "conversations"
    settings = (tokenizer.fingerprint, data.sequence_length, is_chat, scan.corpus.text_field)
    same = settings == (
        manifest.tokenizer,
        manifest.sequence_length,
        manifest.chat is not None,
        manifest.text_field,
    )
    changed = not same or describe_changes(scan.sources.stats(), manifest.sources)
    return None if changed else manifest


def _estimated_tokens(config: TrainConfig, scan: CorpusScan, tokenizer: Tokenizer) -> int:
    """Return an estimate of the tokens of a corpus from the sampled documents.

    The tokens of a chat are those of the texts of its turns, without those of the chat template.
    """
    texts = scan.sample.texts[:_TOKENIZED_DOCUMENTS]
    count = sum(len(tokenizer.encode_array(text)) for text in texts)
    tokens = round(count / max(sum(map(len, texts)), 1) * scan.characters)
    if config.data.kind_of(scan.corpus) == "conversations":
        return tokens
    around = document_tokens(tokenizer, config.data.document_tokens)
    return tokens + scan.documents * (len(around.begin) + 1)


def _language_warnings(corpora: Sequence[CorpusReport]) -> list[str]:
    """Return a warning for each additional corpus that is partly in an original language."""
    main = {
        language: one.scan.name
        for one in corpora
        if one.scan.group == "original"
        for language, count in one.languages.items()
        if language != NO_LANGUAGE and count >= MAIN_LANGUAGE * one.languages.total()
    }
    return [
        f"{one.scan.name}: {one.languages[language] / one.languages.total():.0%} of the sampled "
        f"documents are in the language {language} of the original corpus {name}, so the share of "
        "the additional language in training is lower than data.almr."
        for one in corpora
        if one.scan.group == "additional"
        for language, name in main.items()
        if one.languages[language] >= FOREIGN_SHARE * max(one.languages.total(), 1)
    ]
