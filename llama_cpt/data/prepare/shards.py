"""One corpus into shards: the same bytes from any number of workers, resumable by shard.

The documents of all source files, in order, are one stream. It is cut into spans, which workers
encode, and consecutive spans into shards, by sizes in the sources alone. A shard's tokens are cut
into rows by themselves, so shards do not depend on one another; a tail that fills no row is left
out. Finished shards lie in ``partial/`` with a summary each, until all are there.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
import hashlib
import itertools
import json
from typing import Any

from etils import epath
import numpy as np

from llama_cpt.data.chat.lengths import drop_or_truncate, with_kl_completions
from llama_cpt.data.chat.packing import pack_examples
from llama_cpt.data.prepare.layout import PARTIAL_FOLDER, PrepareJob, PrepareSpec, iter_spans
from llama_cpt.data.prepare.tokenize_pool import EncodedSpan, Span
from llama_cpt.data.rows import (
    Manifest,
    cut_rows,
    heldout_record,
    record_writer,
    write_manifest,
)
from llama_cpt.data.sources.files import Sources
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.files import write_atomic
from llama_cpt.runtime.literal_paths import matching
from llama_cpt.runtime.progress import Progress

SPEC_FILE = "recipe.json"

Encode = Callable[[Iterable[Span]], Iterator[EncodedSpan]]


@dataclass(frozen=True)
class ShardSummary:
    """What went into a shard."""

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
    """SHA-256 of the records."""
    formats: dict[str, int]
    """Chats by format."""
    units: int
    """The most that a row has of conversations, pairs, judged answers."""
    chat_counts: dict[str, int]
    """What ``chat_lengths`` and ``packing`` counted."""


CHAT_COUNTS = (
    "places",
    "learnt_tokens",
    "prompt_tokens_twice",
    "too_long",
    "truncated",
    "nothing_to_learn",
    "mismatches_cut",
)


def write_corpus(order: PrepareJob, encode: Encode) -> Manifest:
    """Write the shards that are missing, and at last the manifest.

    Raises UserError for a bad document (unless the recipe skips those) and for a corpus that gives
    no row; what is finished then remains.
    """
    start_or_resume(order)
    recipe, finished = order.spec, finished_shards(order.partial_folder)
    with Progress(f"prepare {recipe.corpus}", order.megabytes, "MB") as progress:

        def missing() -> Iterator[Span]:
            for span in iter_spans(order.sources, recipe, order.layout):
                if span.shard not in finished:
                    yield span
                else:
                    progress.update(span.disk_bytes / 1e6)

        encoded = encode(missing())
        for shard, spans in itertools.groupby(encoded, key=lambda span: span.shard):
            write_shard(order.partial_folder, shard, recipe, _shown(spans, progress))
    return finish_corpus(order)


def finish_corpus(order: PrepareJob) -> Manifest:
    """Give the shards, all of which are written, their names, and the folder its manifest."""
    finished = finished_shards(order.partial_folder)
    summaries = [finished[shard] for shard in sorted(finished)]
    _check_enough(order.spec, order.sources, summaries)
    names = _publish(order.folder, len(summaries), order.spec)
    manifest = _manifest(order.spec, order.digests, names, summaries)
    write_manifest(str(order.folder), manifest)
    order.partial_folder.rmtree()
    return manifest


def write_shard(
    partial: epath.Path, shard: int, recipe: PrepareSpec, spans: Iterable[EncodedSpan]
) -> ShardSummary:
    """Write one shard; the summary beside it says that it is whole."""
    counts, skipped, formats = Counter(), Counter(), Counter()

    def counted() -> Iterator[EncodedSpan]:
        for span in spans:
            if span.failure:
                raise UserError(
                    f"{span.failure}. Mend it, or set data.bad_documents=skip to leave such "
                    "documents out and count them."
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
            yield span

    digest = hashlib.sha256()
    with record_writer(str(partial / f"{shard:05}.array_record")) as writer:
        for record in _records(counted(), recipe, counts):
            writer.write(record)
            digest.update(record)
            counts["records"] += 1
    fields = set(ShardSummary.__dataclass_fields__) - {
        "skipped",
        "digest",
        "formats",
        "chat_counts",
    }
    summary = ShardSummary(
        **{field: counts[field] for field in fields},
        skipped=dict(sorted(skipped.items())),
        digest=digest.hexdigest(),
        formats=dict(sorted(formats.items())),
        chat_counts={name: counts[name] for name in CHAT_COUNTS} if recipe.chat else {},
    )
    write_atomic(partial / f"{shard:05}.json", json.dumps(asdict(summary)).encode())
    return summary


def _records(spans: Iterator[EncodedSpan], recipe: PrepareSpec, counts: Counter) -> Iterator[bytes]:
    """Rows, or held-out documents where the recipe's ``sequence_length`` is 0."""
    length = recipe.sequence_length
    if recipe.chat:
        units = (unit for span in spans for unit in span.examples)
        units = drop_or_truncate(units, recipe.chat, length, counts)
        if recipe.chat.kind == "unpaired":
            units = with_kl_completions(units, length, counts)
        yield from pack_examples(units, recipe.chat, length, counts)
        return
    if not length:
        for span in spans:
            documents = np.split(span.tokens, np.cumsum(span.lengths)[:-1])
            for tokens, size in zip(documents, span.source_bytes.tolist(), strict=True):
                yield heldout_record(tokens, size)
        return
    for row in cut_rows((span.tokens for span in spans), length + 1):
        if len(row) == length + 1:
            yield row.tobytes()
        else:
            counts["dropped_tokens"] = len(row)


def _shown(spans: Iterable[EncodedSpan], progress: Progress) -> Iterator[EncodedSpan]:
    for span in spans:
        yield span
        progress.update(span.disk_bytes / 1e6)


def start_or_resume(order: PrepareJob) -> None:
    """Keep what an earlier, ended call finished only if it was made of the same."""
    content = asdict(order.spec) | {"layout": asdict(order.layout), "sources": order.digests}
    partial, path = order.partial_folder, order.partial_folder / SPEC_FILE
    recipe = json.dumps(content).encode()
    if path.exists() and path.read_bytes() == recipe:
        return
    if partial.exists():
        partial.rmtree()
    for shard in matching(partial.parent, "*.array_record"):
        shard.unlink()
    partial.mkdir(parents=True)
    write_atomic(path, recipe)


def finished_shards(partial: epath.Path) -> dict[int, ShardSummary]:
    """The shards that an earlier call finished, by number."""
    return {
        int(path.stem): ShardSummary(**json.loads(path.read_text()))
        for path in matching(partial, "*.json")
        if path.name != SPEC_FILE
    }


def _publish(folder: epath.Path, count: int, recipe: PrepareSpec) -> list[str]:
    """Give the shards their names; a call that was ended in the middle of it goes on."""
    kind = "rows" if recipe.sequence_length else "documents"
    names = [f"{kind}-{shard:05}-of-{count:05}.array_record" for shard in range(count)]
    for shard, name in enumerate(names):
        draft = folder / PARTIAL_FOLDER / f"{shard:05}.array_record"
        if draft.exists():
            draft.replace(folder / name)
    return names


def _check_enough(recipe: PrepareSpec, sources: Sources, summaries: list[ShardSummary]) -> None:
    if any(summary.records for summary in summaries):
        return
    where = f"corpus {recipe.corpus!r} ({sources.dataset or sources.files[0]}"
    where += f" and {len(sources.files) - 1} more)" if len(sources.files) > 1 else ")"
    if not any(summary.documents for summary in summaries):
        skipped = sum(sum(summary.skipped.values()) for summary in summaries)
        raise UserError(f"{where} holds no documents{f', {skipped} skipped' if skipped else ''}.")
    if recipe.chat:
        raise UserError(
            f"{where} has nothing to learn from that data.sequence_length="
            f"{recipe.sequence_length} holds: set a larger one, or data.chat.too_long."
        )
    tokens, row_tokens = sum(summary.tokens for summary in summaries), recipe.sequence_length + 1
    raise UserError(
        f"{where} has {tokens} tokens, a row takes {row_tokens}: {row_tokens - tokens} are "
        "missing. Give it more text or set a smaller data.sequence_length."
    )


def _manifest(
    recipe: PrepareSpec,
    digests: list[dict[str, Any]],
    names: list[str],
    summaries: list[ShardSummary],
) -> Manifest:
    counted = ("skipped", "formats", "chat_counts")
    summed = set(ShardSummary.__dataclass_fields__) - {"records", "digest", "units", *counted}
    content = "".join(summary.digest for summary in summaries)
    return Manifest(
        **asdict(recipe),
        sources=digests,
        shards=[(name, s.records) for name, s in zip(names, summaries, strict=True)],
        units=max(summary.units for summary in summaries),
        **{field: dict(_sum(getattr(s, field) for s in summaries)) for field in counted},
        digest=hashlib.sha256(content.encode()).hexdigest(),
        **{field: sum(getattr(s, field) for s in summaries) for field in summed},
    )


def _sum(counts: Iterable[dict[str, int]]) -> Counter:
    total: Counter = Counter()
    for one in counts:
        total.update(one)  # Counter's own sum would leave zeros out.
    return total
