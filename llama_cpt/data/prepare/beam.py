"""Preparation of corpora on many machines with Apache Beam, with the same shards as on one machine.

The pipeline reads the source files once to find the offsets of their blocks, which determine the
parts of the shards. It encodes each part into a file, and then writes each shard from the files of
its parts. All files are in the folder ``partial/`` of the corpus, so that a second run resumes
where the first run stopped. The messages of user errors are also written to files in that folder:
if a pipeline raised an exception, Beam would retry the element and then print a traceback.
"""

from collections.abc import Generator, Iterable, Iterator
import contextlib
from functools import lru_cache
import io
import logging
import pickle
import time
from typing import Any
import uuid

# Apache Beam is an optional dependency.
import apache_beam as beam  # pyright: ignore[reportMissingImports]
from apache_beam.metrics import Metrics  # pyright: ignore[reportMissingImports]
from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
    PipelineOptions,
    StandardOptions,
)
from apache_beam.runners.runner import (  # pyright: ignore[reportMissingImports]
    PipelineResult,
    PipelineState,
)
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
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.literal_paths import matching
from llama_cpt.runtime.progress import Progress
from llama_cpt.runtime.storage import UnreachableError

logger = logging.getLogger(__name__)

# Names of the runners that run on this machine and can therefore read local files.
LOCAL_RUNNERS = ("DirectRunner", "FnApiRunner", "BundleBasedDirectRunner")
POLL_SECONDS = 10.0
COUNTERS = ("source_bytes", "documents", "tokens", "parts", "shards", "records")


def write_corpora(jobs: list[PrepareJob], tokenizer: Tokenizer, options: list[str]) -> None:
    """Prepare the corpora of all ``jobs`` in one pipeline with Beam's ``options``.

    Raises UserError for the same errors as preparation on one machine, and if a path is local but
    the runner uses many machines. Finished files are kept.
    """
    pipeline_options = PipelineOptions(options)
    runner = pipeline_options.view_as(StandardOptions).runner or LOCAL_RUNNERS[0]
    if runner.rpartition(".")[2] not in LOCAL_RUNNERS:
        _require_remote(jobs, runner)
    try:
        pipeline = beam.Pipeline(options=pipeline_options)
    except ValueError as error:
        raise UserError(
            f"Apache Beam: {' '.join(str(error).split())}; correct the options after --."
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
    """Raise UserError if a corpus has a local path, which other machines cannot read."""
    for job in jobs:
        for path in (str(job.folder), *job.sources.files):
            if "://" not in path:
                raise UserError(
                    f"corpus {job.spec.corpus!r}: {path} is a local path, which the machines "
                    f"of {runner} cannot read; set data.prepared and all sources to gs:// paths."
                )


def _write_job(job: PrepareJob, tokenizer: epath.Path) -> None:
    """Write the job and the tokenizer's path to a file that all machines read."""
    shared = job.partial_folder / "beam"
    if (shared / "failed").exists():
        (shared / "failed").rmtree()
    for folder in ("failed", "offsets", "encoded"):
        (shared / folder).mkdir(parents=True, exist_ok=True)
    write_atomic(shared / "job.pickle", pickle.dumps((job, str(tokenizer))))


def _copy_tokenizer(tokenizer: Tokenizer, folder: epath.Path) -> epath.Path:
    """Copy the vocabulary and its configs to ``folder``; return the path of the vocabulary."""
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

    The elements after the first step are pairs. The first item of a pair is the folder of a corpus,
    or a folder and a shard index.
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
    _ = (
        parts
        | "encode" >> beam.FlatMap(_encode, call)
        | "by shard" >> beam.GroupByKey()
        | "write" >> beam.FlatMap(_write, call)
    )


def _wait(result: PipelineResult, runner: str, megabytes: float) -> None:
    """Show progress until the pipeline ends; raise UserError if it does not succeed."""
    with Progress(f"prepare by {runner}", megabytes, "MB") as progress:
        while not PipelineState.is_terminal(result.state):
            time.sleep(POLL_SECONDS)
            progress.update(_counts(result)["source_bytes"] / 1e6 - progress.done)
        result.wait_until_finish()
    if result.state != PipelineState.DONE:
        raise UserError(
            f"{runner} ended the pipeline in state {result.state}; read the log of the runner, "
            "then run the same command again to resume."
        )
    counts = _counts(result)
    summary = ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in COUNTERS)
    logger.info(f"{runner}: {summary} in this call")


def _counts(result: PipelineResult) -> dict[str, int]:
    """Return the current values of the counters in COUNTERS, by name."""
    found = result.metrics().query()["counters"]
    counts = {one.key.metric.name: one.result for one in found}
    return {name: counts.get(name, 0) for name in COUNTERS}


def _count(**amounts: int) -> None:
    """Add each amount to the counter with the name of the argument."""
    for name, amount in amounts.items():
        Metrics.counter("prepare", name).inc(amount)


# The caches outlive a pipeline. ``call`` is unique to each pipeline, so that a pipeline never reads
# the entries of an earlier pipeline.
@lru_cache(64)
def _read_job(folder: str, call: str) -> tuple[PrepareJob, str]:
    """Return the job and the path of the tokenizer that ``_write_job`` wrote."""
    return pickle.loads((epath.Path(folder) / "beam" / "job.pickle").read_bytes())


@lru_cache(1)
def _tokenizer(vocabulary: str, call: str) -> Tokenizer:
    """Return the tokenizer with the vocabulary file ``vocabulary``."""
    return load_tokenizer(vocabulary)


@contextlib.contextmanager
def record_failure(folder: str, name: str) -> Generator[None]:
    """Context manager that writes the message of a UserError to a file instead of raising it.

    An UnreachableError is not caught, so that Beam retries the element.
    """
    try:
        yield
    except UnreachableError:
        raise
    except UserError as error:
        file = epath.Path(folder) / "beam" / "failed" / f"{name}.txt"
        write_atomic(file, str(error).encode())


def _files(folder: str, call: str) -> Iterator[tuple[str, int]]:
    """Yield (folder, index) for each source file of the corpus in ``folder``."""
    job, _ = _read_job(folder, call)
    count = 1 if job.sources.dataset else len(job.sources.files)
    yield from ((folder, number) for number in range(count))


def _measure(element: tuple[str, int], call: str) -> Iterator[tuple[str, tuple[int, Any]]]:
    """Yield (folder, (index, offsets)) for one source file.

    ``offsets`` is int64 (blocks, 3), or None if the file is damaged. The columns are ``first`` and
    ``offset`` of ``BlockStart``, and the size of the block in bytes.
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
    """Yield the parts of all unfinished shards, or nothing if a source file is damaged."""
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
    """Return the path of the file for encoded part ``number`` of a shard."""
    # Version 0.1 wrote pickles of classes that no longer exist to "parts". Because this folder has
    # a different name, these parts are encoded again.
    return epath.Path(folder) / "beam" / "encoded" / f"{shard:05}-{number:05}.spans"


def _encode(element: tuple[str, ShardPart], call: str) -> Iterator[tuple[tuple[str, int], int]]:
    """Encode a part into its file; yield the index of the part, or -1 after a user error."""
    folder, part = element
    job, vocabulary = _read_job(folder, call)
    file = _part_file(folder, part.shard, part.number)
    number = -1
    with record_failure(folder, f"1-{part.shard:05}-{part.number:05}"):
        if not file.exists():
            content = io.BytesIO()
            for span in iter_spans(job.sources, job.spec, job.layout, part, job.dropped):
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
    """Write a shard from the files of its parts, then delete these files."""
    (folder, shard), numbers = element
    job, _ = _read_job(folder, call)
    numbers = sorted(numbers)
    if numbers[0] < 0:
        return
    files = [_part_file(folder, shard, number) for number in numbers]
    with record_failure(folder, f"2-{shard:05}"):
        # A machine can fail after writing the shard and before deleting the parts. The retry must
        # not write the shard again.
        if not (job.partial_folder / f"{shard:05}.json").exists():
            summary = write_shard(job.partial_folder, shard, job.spec, _encoded(files))
            _count(shards=1, records=summary.records)
        for file in files:
            file.unlink(missing_ok=True)
    yield from ()


def _encoded(files: list[epath.Path]) -> Iterator[EncodedSpan]:
    """Yield the encoded spans in ``files``."""
    for file in files:
        content = io.BytesIO(file.read_bytes())
        while content.tell() < content.getbuffer().nbytes:
            yield pickle.load(content)
