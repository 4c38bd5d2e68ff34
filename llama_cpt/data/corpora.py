"""From documents to token rows: every corpus of a config, by all cores, resumable by shard."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
import hashlib
import itertools
import json
import multiprocessing
import os
from typing import Any

from etils import epath
import fsspec
import numpy as np

from llama_cpt.config import CorpusConfig, DataConfig
from llama_cpt.data.documents import BadDocument, Part, parts_of, read_part, sources_of
from llama_cpt.data.token_rows import (
    Manifest,
    cut_rows,
    heldout_record,
    read_manifest,
    record_writer,
    write_atomically,
    write_manifest,
)
from llama_cpt.data.tokenizer import Tokenizer, load_tokenizer
from llama_cpt.errors import UserError
from llama_cpt.progress import Progress

# Texts encoded at a time: enough for the library's own batching, little to hold.
BATCH_DOCUMENTS = 64
# A round trip costs as much as encoding: a sample of each part tells of a lossy tokenizer.
CHECKED_DOCUMENTS = 256
# Below this, starting processes costs more than they save.
POOL_BYTES = 8 << 20


@dataclass(frozen=True)
class Task:
    """One shard to write."""

    part: Part
    tokenizer: str
    sequence_length: int
    """0 for held-out documents."""
    bad_documents: str
    path: str


@dataclass(frozen=True)
class ShardSummary:
    """What went into a shard; kept beside it until the corpus is complete."""

    records: int
    documents: int
    tokens: int
    dropped_tokens: int
    source_bytes: int
    characters: int
    skipped: dict[str, int]
    checked_documents: int
    lossy_documents: int


@dataclass(frozen=True)
class Prepared:
    """All corpora of a config, ready to read."""

    config: DataConfig
    rows: dict[str, Manifest]
    heldout: dict[str, Manifest]

    def folder(self, name: str) -> str:
        """Where a training corpus lies."""
        return _folder(self.config, name, heldout=False)

    def heldout_folder(self, name: str) -> str:
        """Where a held-out corpus lies."""
        return _folder(self.config, name, heldout=True)

    def fingerprints(self) -> dict[str, Any]:
        """Of tokenizer and corpora: equal for equal data, wherever it lies."""
        manifests = {"data": self.rows, "heldout": self.heldout}
        return {
            group: {name: manifest.fingerprint for name, manifest in members.items()}
            for group, members in manifests.items()
        }


def prepare(config: DataConfig, workers: int | None = None) -> Prepared:
    """Prepare what is missing and return all; the same shards come out for any ``workers``.

    A killed call goes on at the shard where it was. Raises UserError for bad sources, and for a
    prepared corpus whose sources, tokenizer or row length are no longer what they were.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    rows = {
        corpus.name: _corpus(config, corpus, tokenizer, workers, heldout=False)
        for corpus in config.additional + config.original
    }
    heldout = {
        corpus.name: _corpus(config, corpus, tokenizer, workers, heldout=True)
        for corpus in config.heldout
    }
    return Prepared(config, rows, heldout)


def _corpus(
    config: DataConfig,
    corpus: CorpusConfig,
    tokenizer: Tokenizer,
    workers: int | None,
    *,
    heldout: bool,
) -> Manifest:
    folder = epath.Path(_folder(config, corpus.name, heldout=heldout))
    length = 0 if heldout else config.sequence_length
    sources = sources_of(corpus)
    recipe = {
        "corpus": corpus.name,
        "tokenizer": tokenizer.fingerprint,
        "sequence_length": length,
        "text_field": corpus.text_field,
        "bad_documents": config.bad_documents,
    }
    found = read_manifest(str(folder))
    if found is not None:
        _check_current(found, recipe, sources, folder)
        return found
    folder.mkdir(parents=True, exist_ok=True)
    _start(folder, recipe | {"sources": [_stat(source) for source in sources]})
    parts = [part for source in sources for part in parts_of(source, corpus.text_field)]
    kind = "documents" if heldout else "rows"
    names = [f"{kind}-{i:05}-of-{len(parts):05}.array_record" for i in range(len(parts))]
    tasks = [
        Task(part, tokenizer.path, length, config.bad_documents, str(folder / name))
        for part, name in zip(parts, names, strict=True)
    ]
    summaries = _run(corpus.name, tasks, workers)
    manifest = _manifest(recipe, sources, names, summaries)
    _check_enough(corpus, manifest)
    write_manifest(str(folder), manifest)
    for name in names:
        (folder / f"{name}.json").unlink(missing_ok=True)
    return manifest


def _run(label: str, tasks: list[Task], workers: int | None) -> list[ShardSummary]:
    """Every task's summary, in order; those done before are not done again."""
    summaries = {task.path: found for task in tasks if (found := _finished(task))}
    missing = [task for task in tasks if task.path not in summaries]
    sizes = {task.path: _bytes_of(task.part) for task in missing}
    workers = min(workers or os.cpu_count() or 1, len(missing))
    with Progress(f"prepare {label}", sum(sizes.values()) / 1e6, "MB") as progress:
        if workers <= 1 or sum(sizes.values()) < POOL_BYTES:
            for task in missing:
                summaries[task.path] = write_shard(task)
                progress.update(sizes[task.path] / 1e6)
            return [summaries[task.path] for task in tasks]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            futures = {pool.submit(write_shard, task): task.path for task in missing}
            try:
                for future in as_completed(futures):
                    summaries[futures[future]] = future.result()
                    progress.update(sizes[futures[future]] / 1e6)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return [summaries[task.path] for task in tasks]


def write_shard(task: Task) -> ShardSummary:
    """Tokenize one part into its shard; the summary beside it says that it is whole."""
    tokenizer = _tokenizer(task.tokenizer)
    counts: Counter = Counter()
    skipped: Counter = Counter()
    documents = _encoded(task, tokenizer, counts, skipped)
    with record_writer(task.path) as writer:
        if task.sequence_length:
            row_tokens = task.sequence_length + 1
            for row in cut_rows((tokens for tokens, _ in documents), row_tokens):
                if len(row) < row_tokens:
                    counts["dropped_tokens"] = len(row)
                    break
                writer.write(row.tobytes())
                counts["records"] += 1
        else:
            for tokens, source_bytes in documents:
                writer.write(heldout_record(tokens, source_bytes))
                counts["records"] += 1
    fields = ShardSummary.__dataclass_fields__
    summary = ShardSummary(
        **{f: counts[f] for f in fields if f != "skipped"}, skipped=dict(skipped)
    )
    write_atomically(epath.Path(f"{task.path}.json"), json.dumps(asdict(summary)).encode())
    return summary


def _encoded(
    task: Task, tokenizer: Tokenizer, counts: Counter, skipped: Counter
) -> Iterator[tuple[np.ndarray, int]]:
    """(BOS text EOS, UTF-8 bytes of the text) of each good document; counts as it goes."""

    def good() -> Iterator[str]:
        for document in read_part(task.part):
            if not isinstance(document, BadDocument):
                yield document
            elif task.bad_documents == "skip":
                skipped[document.reason] += 1
            else:
                raise UserError(
                    f"{document.place}: {document.reason}. Mend it, or set "
                    "data.bad_documents=skip to leave such documents out and count them."
                )

    texts = good()
    lossless = tokenizer.kind == "tiktoken"
    while batch := list(itertools.islice(texts, BATCH_DOCUMENTS)):
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            source_bytes = len(text.encode())
            counts.update(documents=1, tokens=len(ids) + 2, source_bytes=source_bytes)
            counts["characters"] += len(text)
            if counts["checked_documents"] < CHECKED_DOCUMENTS and not lossless:
                counts["checked_documents"] += 1
                counts["lossy_documents"] += tokenizer.decode(ids) != text
            yield np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], np.uint32), source_bytes


def _manifest(
    recipe: dict[str, Any], sources: list[str], names: list[str], summaries: list[ShardSummary]
) -> Manifest:
    def total(field: str) -> int:
        return sum(getattr(summary, field) for summary in summaries)

    counted = (
        "documents",
        "tokens",
        "dropped_tokens",
        "source_bytes",
        "characters",
        "checked_documents",
        "lossy_documents",
    )
    return Manifest(
        **recipe,
        sources=[_stat(source) | {"sha256": _digest(source)} for source in sources],
        shards=[(name, s.records) for name, s in zip(names, summaries, strict=True)],
        skipped=dict(sum((Counter(summary.skipped) for summary in summaries), Counter())),
        **{field: total(field) for field in counted},
    )


def _check_enough(corpus: CorpusConfig, manifest: Manifest) -> None:
    if manifest.rows:
        return
    if not manifest.documents:
        skipped = f" ({sum(manifest.skipped.values())} skipped)" if manifest.skipped else ""
        raise UserError(f"corpus {corpus.name!r}: {corpus.source} holds no documents{skipped}.")
    row_tokens = manifest.sequence_length + 1
    raise UserError(
        f"corpus {corpus.name!r}: {manifest.tokens} tokens, but a row takes {row_tokens}: give it "
        "more text or set a smaller data.sequence_length."
    )


def _check_current(
    found: Manifest, recipe: dict[str, Any], sources: list[str], folder: epath.Path
) -> None:
    """Refuse a prepared corpus that is not what the config asks for now."""
    remedy = f"Delete {folder} to prepare it anew, or set another data.prepared."
    for field, wanted in recipe.items():
        if (had := getattr(found, field)) != wanted:
            raise UserError(f"{folder} was prepared with {field}={had}, now {wanted}. {remedy}")
    before = {source["path"]: source for source in found.sources}
    if gone := before.keys() ^ set(sources):
        raise UserError(f"{folder}: its sources are not the same: {sorted(gone)[0]}. {remedy}")
    for source in sources:
        had = before[source]
        same = all(_stat(source)[field] == had[field] for field in ("bytes", "modified"))
        if not same and _digest(source) != had["sha256"]:
            raise UserError(f"{source} has changed since {folder} was prepared. {remedy}")


def _start(folder: epath.Path, recipe: dict[str, Any]) -> None:
    """Keep what an earlier, killed call finished only if it was made of the same."""
    path = folder / "recipe.json"
    content = json.dumps(recipe).encode()
    if not path.exists() or path.read_bytes() != content:
        for file in folder.iterdir():
            if file.name.startswith(("rows-", "documents-")):
                file.unlink()
        write_atomically(path, content)


def _finished(task: Task) -> ShardSummary | None:
    path = epath.Path(f"{task.path}.json")
    if not path.exists() or not epath.Path(task.path).exists():
        return None
    return ShardSummary(**json.loads(path.read_text()))


def _folder(config: DataConfig, name: str, *, heldout: bool) -> str:
    place = epath.Path(config.prepared)
    return str(place / "heldout" / name if heldout else place / name)


def _stat(source: str) -> dict[str, Any]:
    if source.startswith("tfds:"):
        return {"path": source, "bytes": 0, "modified": ""}
    system, path = fsspec.core.url_to_fs(source)
    info = system.info(path)
    return {
        "path": source,
        "bytes": info["size"],
        "modified": str(info.get("mtime") or info.get("updated")),
    }


def _digest(source: str) -> str:
    """SHA-256 of a file; of a TFDS name, of its name and number of documents."""
    if source.startswith("tfds:"):
        return hashlib.sha256(source.encode()).hexdigest()
    with fsspec.open(source, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(8 << 20):
            digest.update(block)
    return digest.hexdigest()


def _bytes_of(part: Part) -> float:
    if part.source.startswith("tfds:"):
        return POOL_BYTES
    system, path = fsspec.core.url_to_fs(part.source)
    return system.size(path) / part.count


@lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer:
    # One process a core: the library's own threads would only get in their way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return load_tokenizer(path)
