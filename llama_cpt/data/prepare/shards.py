"""Preparation of one corpus as shards, with the same bytes for any number of workers.

The shards of a corpus depend only on its source files and settings (``prepare.layout``). Rows never
cross the border of a shard, so shards are independent of each other. Tokens at the end of a shard
that do not fill a row are dropped. Each finished shard is stored with a summary in ``partial/``
until all shards are finished, so that preparation can resume after an interruption.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
import hashlib
import itertools
import json
from typing import Any

from etils import epath
import numpy as np

from llama_cpt.config.fields import from_dict
from llama_cpt.data.chat.lengths import drop_or_truncate, with_kl_completions
from llama_cpt.data.chat.packing import pack_examples
from llama_cpt.data.prepare.layout import PARTIAL_FOLDER, PrepareJob, PrepareSpec, iter_spans
from llama_cpt.data.prepare.tokenize_pool import EncodedSpan, Span
from llama_cpt.data.rows import (
    TOKEN_BITS,
    VERSION,
    Manifest,
    cut_rows,
    heldout_record,
    record_writer,
    write_manifest,
)
from llama_cpt.data.sources.documents import files_without_checksums
from llama_cpt.data.sources.files import Sources
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.runtime.literal_paths import matching
from llama_cpt.runtime.progress import Progress

SPEC_FILE = "recipe.json"

Encode = Callable[[Iterable[Span]], Iterator[EncodedSpan]]


@dataclass(frozen=True)
class ShardSummary:
    """Counts of a finished shard, stored as JSON next to the shard."""

    records: int
    documents: int
    tokens: int
    dropped_tokens: int
    source_bytes: int
    characters: int
    skipped: dict[str, int]
    checked_documents: int
    lossy_documents: int
    digest: str
    """SHA-256 over the records of the shard."""
    formats: dict[str, int]
    """Number of chats by format."""
    units: int
    """Maximum number of examples (conversations, pairs or rated answers) per row."""
    chat_counts: dict[str, int]
    """Counts of truncation and packing; CHAT_COUNTS lists their names."""
    dropped_fields: dict[str, int] = field(default_factory=dict)
    """Number of chats in which a field of ``data.chat.drop_fields`` had content, by field."""
    dropped_documents: dict[str, int] = field(default_factory=dict)
    """Number of valid documents that are left out, by reason."""


# Fields of ShardSummary and Manifest that contain counts by name.
COUNTERS = ("skipped", "formats", "chat_counts", "dropped_fields", "dropped_documents")
# Names of counts in manifests. They never change, because existing manifests contain them.
CHAT_COUNTS = (
    "places",
    "learnt_tokens",
    "prompt_tokens_twice",
    "too_long",
    "truncated",
    "nothing_to_learn",
    "mismatches_cut",
    "examples",
)


def write_corpus(job: PrepareJob, encode: Encode) -> Manifest:
    """Write the unfinished shards of a corpus, then its manifest; return the manifest.

    Raises UserError if a document is bad and the spec does not skip bad documents, or if the corpus
    has no complete row. Finished shards are kept.
    """
    start_or_resume(job)
    spec, finished = job.spec, finished_shards(job.partial_folder)
    with Progress(f"prepare {spec.corpus}", job.megabytes, "MB") as progress:

        def missing() -> Iterator[Span]:
            for span in iter_spans(job.sources, spec, job.layout, dropped=job.dropped):
                if span.shard not in finished:
                    yield span
                else:
                    progress.update(span.disk_bytes / 1e6)

        encoded = encode(missing())
        for shard, spans in itertools.groupby(encoded, key=lambda span: span.shard):
            write_shard(job.partial_folder, shard, spec, _report_progress(spans, progress))
    return finish_corpus(job)


def finish_corpus(job: PrepareJob) -> Manifest:
    """Rename the shards, all of which must be finished; write and return the manifest."""
    finished = finished_shards(job.partial_folder)
    summaries = [finished[shard] for shard in sorted(finished)]
    _check_enough(job.spec, job.sources, summaries)
    names = _publish(job.folder, len(summaries), job.spec)
    manifest = _manifest(job.spec, job.digests, names, summaries)
    unverified = files_without_checksums(job.sources, job.spec.text_field)
    manifest = replace(manifest, without_checksums=unverified)
    write_manifest(str(job.folder), manifest)
    job.partial_folder.rmtree()
    return manifest


def write_shard(
    partial: epath.Path, shard: int, spec: PrepareSpec, spans: Iterable[EncodedSpan]
) -> ShardSummary:
    """Write a shard and its summary; the summary file marks the shard as finished."""
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    counted = _count_spans(spans, counts, skipped, formats, dropped, left_out)
    digest = hashlib.sha256()
    with record_writer(str(partial / f"{shard:05}.array_record")) as writer:
        for record in _records(counted, spec, counts):
            writer.write(record)
            digest.update(record)
            counts["records"] += 1
    fields = set(ShardSummary.__dataclass_fields__) - {"digest", *COUNTERS}
    summary = ShardSummary(
        **{field: counts[field] for field in fields},
        skipped=dict(sorted(skipped.items())),
        digest=digest.hexdigest(),
        formats=dict(sorted(formats.items())),
        chat_counts={name: counts[name] for name in CHAT_COUNTS} if spec.chat else {},
        dropped_fields=dict(sorted(dropped.items())),
        dropped_documents=dict(sorted(left_out.items())),
    )
    write_atomic(partial / f"{shard:05}.json", json.dumps(asdict(summary)).encode())
    return summary


def _count_spans(
    spans: Iterable[EncodedSpan],
    counts: Counter[str],
    skipped: Counter[str],
    formats: Counter[str],
    dropped: Counter[str],
    left_out: Counter[str],
) -> Iterator[EncodedSpan]:
    """Yield ``spans`` and add their counts to the counters.

    Raises UserError if a span has a failure.
    """
    for span in spans:
        if span.failure:
            raise UserError(
                f"{span.failure}. Correct the source, or set data.bad_documents=skip to skip and "
                "count bad documents."
            )
        counts.update(
            documents=len(span.lengths),
            tokens=int(span.lengths.sum()),
            source_bytes=int(span.source_bytes.sum()),
            characters=span.characters,
            checked_documents=span.checked_documents,
            lossy_documents=span.lossy_documents,
        )
        skipped.update(span.skipped)
        formats.update(span.formats)
        dropped.update(span.dropped_fields)
        left_out.update(span.dropped_documents)
        yield span


def _records(
    spans: Iterator[EncodedSpan], spec: PrepareSpec, counts: Counter[str]
) -> Iterator[bytes]:
    """Yield the records of a shard: rows, or documents if ``spec.sequence_length`` is 0."""
    length = spec.sequence_length
    if spec.chat:
        examples = (example for span in spans for example in span.examples)
        examples = drop_or_truncate(examples, spec.chat, length, counts)
        if spec.chat.kind == "unpaired":
            examples = with_kl_completions(examples, length, counts)
        yield from pack_examples(examples, spec.chat, length, counts)
        return
    if not length:
        for span in spans:
            ends = np.cumsum(span.lengths)
            sizes = zip(ends - span.lengths, ends, span.source_bytes.tolist(), strict=True)
            for start, end, size in sizes:
                yield heldout_record(span.tokens[start:end] & TOKEN_BITS, size)
        return
    for row in cut_rows((span.tokens for span in spans), length + 1):
        if len(row) == length + 1:
            yield row.tobytes()
        else:
            counts["dropped_tokens"] = len(row)


def _report_progress(spans: Iterable[EncodedSpan], progress: Progress) -> Iterator[EncodedSpan]:
    """Yield ``spans`` and update ``progress`` after each span."""
    for span in spans:
        yield span
        progress.update(span.disk_bytes / 1e6)


def start_or_resume(job: PrepareJob) -> None:
    """Create an empty partial folder, or keep a folder made with the same spec and sources."""
    content = asdict(job.spec) | {"layout": asdict(job.layout), "sources": job.digests}
    partial, path = job.partial_folder, job.partial_folder / SPEC_FILE
    serialized = json.dumps(content).encode()
    if path.exists() and path.read_bytes() == serialized:
        return
    if partial.exists():
        partial.rmtree()
    for shard in matching(partial.parent, "*.array_record"):
        shard.unlink()
    partial.mkdir(parents=True)
    write_atomic(path, serialized)


def finished_shards(partial: epath.Path) -> dict[int, ShardSummary]:
    """Return the summaries of the finished shards in the folder ``partial``, by shard index."""
    return {
        int(path.stem): _read_summary(str(path))
        for path in matching(partial, "*.json")
        if path.name != SPEC_FILE
    }


def _read_summary(path: str) -> ShardSummary:
    """Return the summary of a finished shard; raise UserError if the file is damaged."""
    values = read_json_object(path, "delete it to write the shard again")
    return from_dict(ShardSummary, values, path)


def _publish(folder: epath.Path, count: int, spec: PrepareSpec) -> list[str]:
    """Rename the shards to their final names, and return the names.

    Shards that an earlier call has already renamed are skipped.
    """
    kind = "rows" if spec.sequence_length else "documents"
    names = [f"{kind}-{shard:05}-of-{count:05}.array_record" for shard in range(count)]
    for shard, name in enumerate(names):
        draft = folder / PARTIAL_FOLDER / f"{shard:05}.array_record"
        if draft.exists():
            draft.replace(folder / name)
    return names


def _check_enough(spec: PrepareSpec, sources: Sources, summaries: list[ShardSummary]) -> None:
    """Raise UserError if no shard contains a record; the message names the cause."""
    if any(summary.records for summary in summaries):
        return
    corpus = f"corpus {spec.corpus!r} ({sources.dataset or sources.files[0]}"
    corpus += f" and {len(sources.files) - 1} more)" if len(sources.files) > 1 else ")"
    if not any(summary.documents for summary in summaries):
        skipped = _sum(summary.skipped for summary in summaries)
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in skipped.most_common())
        outcome = "; add text"
        if skipped:
            outcome = f", {skipped.total():,} skipped ({reasons}); correct them"
        raise UserError(f"{corpus} contains no documents{outcome}.")
    if spec.chat:
        raise UserError(
            f"{corpus} has no chat with targets that fits data.sequence_length="
            f"{spec.sequence_length}; increase data.sequence_length or change data.chat.too_long."
        )
    tokens, row_tokens = sum(summary.tokens for summary in summaries), spec.sequence_length + 1
    raise UserError(
        f"{corpus} has {tokens} tokens, but a row takes {row_tokens}; add text with "
        f"{row_tokens - tokens} more tokens or set a smaller data.sequence_length."
    )


def _manifest(
    spec: PrepareSpec,
    digests: list[dict[str, Any]],
    names: list[str],
    summaries: list[ShardSummary],
) -> Manifest:
    """Return the manifest of a corpus with shard files ``names``, in the order of ``summaries``."""
    summed = set(ShardSummary.__dataclass_fields__) - {"records", "digest", "units", *COUNTERS}
    content = "".join(summary.digest for summary in summaries)
    totals: dict[str, Any] = {field: sum(getattr(s, field) for s in summaries) for field in summed}
    totals |= {field: dict(_sum(getattr(s, field) for s in summaries)) for field in COUNTERS}
    fields = asdict(spec) | {"document_tokens": spec.document_tokens}
    return Manifest(
        **fields,
        version=VERSION,
        sources=digests,
        shards=[(name, s.records) for name, s in zip(names, summaries, strict=True)],
        units=max(summary.units for summary in summaries),
        digest=hashlib.sha256(content.encode()).hexdigest(),
        **totals,
    )


def _sum(counts: Iterable[dict[str, int]]) -> Counter[str]:
    """Return the sum of ``counts`` by key."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)  # The + of Counters would drop zeros.
    return total
