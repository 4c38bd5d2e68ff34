"""Preparation of corpora with Apache Beam: the same shards as on one machine, by many machines.

The pipeline reads the source files once to find the start of their blocks, from which the parts of
the shards follow. It encodes each part into a file and writes the parts of a shard, in order, as
the shard. All files are in ``partial/`` of the corpus, so that a second run resumes where the first
one ended; the elements of the pipeline are only folders and numbers. User errors are also written
to files there: an error that is raised within a pipeline is retried and ends in a runner's
traceback.
"""

from collections.abc import Iterable, Iterator
import contextlib
from functools import lru_cache
import io
import pickle
import sys
import time
from typing import Any
import uuid

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineResult, PipelineState
from etils import epath
import numpy as np

from llama_cpt.data.chat.template import find_template
from llama_cpt.data.prepare.layout import (
    BlockOffset,
    PrepareJob,
    ShardPart,
    block_offsets,
    iter_spans,
    split_into_parts,
)
from llama_cpt.data.prepare.shards import (
    finish_corpus,
    finished_shards,
    start_or_resume,
    write_shard,
)
from llama_cpt.data.prepare.tokenize_pool import EncodedSpan, encode_span
from llama_cpt.data.sources.documents import BlockStart
from llama_cpt.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.files import write_atomic
from llama_cpt.runtime.literal_paths import matching
from llama_cpt.runtime.progress import Progress
from llama_cpt.runtime.storage import UnreachableError

# Runners that run on this machine and can therefore read local files.
LOCAL_RUNNERS = ("DirectRunner", "FnApiRunner", "BundleBasedDirectRunner")
POLL_SECONDS = 10.0
COUNTERS = ("source_bytes", "documents", "tokens", "parts", "shards", "records")


def write_corpora(jobs: list[PrepareJob], tokenizer: Tokenizer, options: list[str]) -> None:
    """Prepare the corpora of all ``jobs`` in one pipeline with Beam's ``options``.

    Raises UserError for the same errors as preparation on one machine, and for local paths with a
    runner of many machines; what is finished is kept.
    """
    pipeline_options = PipelineOptions(options)
    runner = pipeline_options.view_as(StandardOptions).runner or LOCAL_RUNNERS[0]
    if runner.rpartition(".")[2] not in LOCAL_RUNNERS:
        _require_remote(jobs, runner)
    try:
        pipeline = beam.Pipeline(options=pipeline_options)
    except ValueError as error:
        raise UserError(
            f"Apache Beam: {' '.join(str(error).split())}; correct its options after --."
        ) from None
    for job in jobs:
        start_or_resume(job)
    copy = _copy_tokenizer(tokenizer, jobs[0].partial_folder / "beam" / "tokenizer")
    for job in jobs:
        _write_job(job, copy)
    _transform(pipeline, [str(job.partial_folder) for job in jobs], uuid.uuid4().hex)
    _wait(pipeline.run(), runner, sum(job.megabytes for job in jobs))
    for job in jobs:
        failures = matching(job.partial_folder / "beam" / "failed", "*")
        if failures:
            raise UserError(failures[0].read_text())
    for job in jobs:
        finish_corpus(job)


def _require_remote(jobs: list[PrepareJob], runner: str) -> None:
    for job in jobs:
        for path in (str(job.folder), *job.sources.files):
            if "://" not in path:
                raise UserError(
                    f"corpus {job.spec.corpus!r}: {path} is a local path, which the machines "
                    f"of {runner} cannot read; set data.prepared and all sources to gs:// paths."
                )


def _write_job(job: PrepareJob, tokenizer: epath.Path) -> None:
    """Write the job and the tokenizer's path to a file that the machines read."""
    shared = job.partial_folder / "beam"
    if (shared / "failed").exists():
        (shared / "failed").rmtree()
    for folder in ("failed", "offsets", "encoded"):
        (shared / folder).mkdir(parents=True, exist_ok=True)
    write_atomic(shared / "job.pickle", pickle.dumps((job, str(tokenizer))))


def _copy_tokenizer(tokenizer: Tokenizer, folder: epath.Path) -> epath.Path:
    """Copy the vocabulary and the configs next to it to ``folder``; return the copy's path."""
    if folder.exists():
        folder.rmtree()
    folder.mkdir(parents=True)
    vocabulary = epath.Path(tokenizer.path)
    settings = vocabulary.with_name("tokenizer_config.json")
    for file in (vocabulary, settings) if settings.exists() else (vocabulary,):
        write_atomic(folder / file.name, file.read_bytes())
    if template := find_template(tokenizer.path):
        write_atomic(folder / "chat_template.jinja", template.encode())
    return folder / vocabulary.name


def _transform(pipeline: beam.Pipeline, partials: list[str], call: str) -> None:
    """Build the pipeline: folders -> files -> block offsets -> parts -> shards.

    Elements are pairs of a corpus's folder, or a folder and a shard, and a number.
    """
    files = (
        pipeline
        | "corpora" >> beam.Create(partials)
        | "files" >> beam.FlatMap(_files, call)
        | "spread files" >> beam.Reshuffle()
    )
    parts = (
        files
        | "measure" >> beam.FlatMap(_measure, call)
        | "by corpus" >> beam.GroupByKey()
        | "cut" >> beam.FlatMap(_parts, call)
        | "spread parts" >> beam.Reshuffle()
    )
    (
        parts
        | "encode" >> beam.FlatMap(_encode, call)
        | "by shard" >> beam.GroupByKey()
        | "write" >> beam.FlatMap(_write, call)
    )


def _wait(result: PipelineResult, runner: str, megabytes: float) -> None:
    """Report progress until the pipeline ends; raise UserError if it did not succeed."""
    with Progress(f"prepare by {runner}", megabytes, "MB") as progress:
        while not PipelineState.is_terminal(result.state):
            time.sleep(POLL_SECONDS)
            progress.update(_counts(result)["source_bytes"] / 1e6 - progress.done)
        result.wait_until_finish()
    if result.state != PipelineState.DONE:
        raise UserError(
            f"{runner} ended the pipeline in state {result.state}; see its log, then run the same "
            "command again, which resumes."
        )
    counts = _counts(result)
    summary = ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in COUNTERS)
    print(f"{runner}: {summary} in this call", file=sys.stderr)


def _counts(result: PipelineResult) -> dict[str, int]:
    found = result.metrics().query()["counters"]
    counts = {one.key.metric.name: one.result for one in found}
    return {name: counts.get(name, 0) for name in COUNTERS}


def _count(**amounts: int) -> None:
    for name, amount in amounts.items():
        Metrics.counter("prepare", name).inc(amount)


# The caches outlive a pipeline; ``call`` is unique per pipeline, so that none reads another's
# entries.
@lru_cache(64)
def _read_job(folder: str, call: str) -> tuple[PrepareJob, str]:
    """Return the job and the tokenizer's path that ``_write_job`` wrote in ``folder``."""
    return pickle.loads((epath.Path(folder) / "beam" / "job.pickle").read_bytes())


@lru_cache(1)
def _tokenizer(vocabulary: str, call: str) -> Tokenizer:
    """Return the tokenizer that was copied to ``vocabulary``."""
    return load_tokenizer(vocabulary)


@contextlib.contextmanager
def record_failure(folder: str, name: str) -> Iterator[None]:
    """Context manager that writes a UserError to a file; UnreachableError is left to Beam."""
    try:
        yield
    except UnreachableError:  # Beam retries the element.
        raise
    except UserError as error:
        file = epath.Path(folder) / "beam" / "failed" / f"{name}.txt"
        write_atomic(file, str(error).encode())


def _files(folder: str, call: str) -> Iterator[tuple[str, int]]:
    """Yield the folder with the index of each source file."""
    job, _ = _read_job(folder, call)
    count = 1 if job.sources.dataset else len(job.sources.files)
    yield from ((folder, number) for number in range(count))


def _measure(element: tuple[str, int], call: str) -> Iterator[tuple[str, tuple[int, Any]]]:
    """Yield the offsets of a file's blocks, int64 (blocks, 3), or None if the file is broken.

    The columns are those of ``BlockStart``, without the file, and the size in bytes.
    """
    folder, number = element
    job, _ = _read_job(folder, call)
    file = epath.Path(folder) / "beam" / "offsets" / f"{number:06}.npy"
    offsets = None
    with record_failure(folder, f"0-{number:06}"):
        if not file.exists():
            found = block_offsets(job.sources, job.spec, job.layout, number)
            rows = [(start.first, start.offset, size) for start, size in found]
            content = io.BytesIO()
            np.save(content, np.array(rows, np.int64).reshape(-1, 3))
            write_atomic(file, content.getvalue())
        offsets = np.load(io.BytesIO(file.read_bytes()))
    yield folder, (number, offsets)


def _parts(
    element: tuple[str, Iterable[tuple[int, Any]]], call: str
) -> Iterator[tuple[str, ShardPart]]:
    """Yield the parts of the shards that are not finished; none if a file is broken."""
    folder, files = element
    job, _ = _read_job(folder, call)
    files = sorted(files, key=lambda one: one[0])
    if any(offsets is None for _, offsets in files):
        return
    rows = ((number, row.tolist()) for number, offsets in files for row in offsets)
    offsets = (BlockOffset(BlockStart(n, first, offset), size) for n, (first, offset, size) in rows)
    finished = finished_shards(job.partial_folder)
    for part in split_into_parts(offsets, job.layout):
        if part.shard not in finished:
            yield folder, part


def _part_file(folder: str, shard: int, number: int) -> epath.Path:
    # Version 0.1 left pickles of classes under other names in "parts": they are encoded again.
    return epath.Path(folder) / "beam" / "encoded" / f"{shard:05}-{number:05}.spans"


def _encode(element: tuple[str, ShardPart], call: str) -> Iterator[tuple[tuple[str, int], int]]:
    """Encode a part into its file; yield its number, or -1 if its sources are broken."""
    folder, part = element
    job, vocabulary = _read_job(folder, call)
    file = _part_file(folder, part.shard, part.number)
    number = -1
    with record_failure(folder, f"1-{part.shard:05}-{part.number:05}"):
        if not file.exists():
            content = io.BytesIO()
            for span in iter_spans(job.sources, job.spec, job.layout, part):
                encoded = encode_span(_tokenizer(vocabulary, call), span)
                pickle.dump(encoded, content, protocol=5)
                _count(
                    source_bytes=int(encoded.disk_bytes),
                    documents=len(encoded.lengths),
                    tokens=int(encoded.lengths.sum()),
                )
            write_atomic(file, content.getvalue())
            _count(parts=1)
        number = part.number
    yield (folder, part.shard), number


def _write(element: tuple[tuple[str, int], Iterable[int]], call: str) -> Iterator[None]:
    """Write a shard from the files of its parts, then delete them."""
    (folder, shard), numbers = element
    job, _ = _read_job(folder, call)
    numbers = sorted(numbers)
    if numbers[0] < 0:
        return
    files = [_part_file(folder, shard, number) for number in numbers]
    with record_failure(folder, f"2-{shard:05}"):
        # A machine may fail between writing the shard and deleting the parts; the retry skips the
        # first.
        if not (job.partial_folder / f"{shard:05}.json").exists():
            summary = write_shard(job.partial_folder, shard, job.spec, _encoded(files))
            _count(shards=1, records=summary.records)
        for file in files:
            file.unlink(missing_ok=True)
    yield from ()


def _encoded(files: list[epath.Path]) -> Iterator[EncodedSpan]:
    for file in files:
        content = io.BytesIO(file.read_bytes())
        while content.tell() < content.getbuffer().nbytes:
            yield pickle.load(content)
