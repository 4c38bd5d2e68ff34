"""Corpora as token rows by Apache Beam: the same shards as on one machine, by many.

Source files are read once to learn where their blocks begin; from that follow the parts of the
shards. Parts are encoded, each by itself, into files; a shard's parts, side by side, are written as
a shard. All of this lies in the corpus's ``partial/``, so that a second run goes on where the first
ended; the pipeline itself carries numbers only. What a user can mend is written down there too:
raised within a pipeline it would be tried again and end in a runner's traceback.
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

# Those that run in this process or on this machine, and so read local files.
LOCAL_RUNNERS = ("DirectRunner", "FnApiRunner", "BundleBasedDirectRunner")
POLL_SECONDS = 10.0
COUNTERS = ("source_bytes", "documents", "tokens", "parts", "shards", "records")


def write_corpora(orders: list[PrepareJob], tokenizer: Tokenizer, options: list[str]) -> None:
    """Write all of ``orders`` by one pipeline with Beam's ``options``.

    Raises UserError for what the local preparation refuses, and for local paths where the runner
    is of many machines; what is finished then remains.
    """
    chosen = PipelineOptions(options)
    runner = chosen.view_as(StandardOptions).runner or LOCAL_RUNNERS[0]
    if runner.rpartition(".")[2] not in LOCAL_RUNNERS:
        _require_remote(orders, runner)
    try:
        pipeline = beam.Pipeline(options=chosen)
    except ValueError as error:
        raise UserError(f"Apache Beam: {' '.join(str(error).split())}") from None
    for order in orders:
        start_or_resume(order)
    copy = _hand_over_tokenizer(tokenizer, orders[0].partial_folder / "beam" / "tokenizer")
    for order in orders:
        _hand_over(order, copy)
    _transform(pipeline, [str(order.partial_folder) for order in orders], uuid.uuid4().hex)
    _wait(pipeline.run(), runner, sum(order.megabytes for order in orders))
    for order in orders:
        failures = matching(order.partial_folder / "beam" / "failed", "*")
        if failures:
            raise UserError(failures[0].read_text())
    for order in orders:
        finish_corpus(order)


def _require_remote(orders: list[PrepareJob], runner: str) -> None:
    for order in orders:
        for path in (str(order.folder), *order.sources.files):
            if "://" not in path:
                raise UserError(
                    f"corpus {order.spec.corpus!r}: {path} is a local path, which the machines "
                    f"of {runner} do not see: data.prepared and every source must be gs:// paths."
                )


def _hand_over(order: PrepareJob, tokenizer: epath.Path) -> None:
    """Lay what the machines need where they find it."""
    place = order.partial_folder / "beam"
    if (place / "failed").exists():
        (place / "failed").rmtree()
    for folder in ("failed", "places", "parts"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    write_atomic(place / "order.pickle", pickle.dumps((order, str(tokenizer))))


def _hand_over_tokenizer(tokenizer: Tokenizer, folder: epath.Path) -> epath.Path:
    """A copy of the vocabulary, and of what lies beside it, in ``folder``."""
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
    """Folders -> files -> places -> parts -> shards; each a key and a number, by its folder."""
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
    """Show how far the pipeline is until it ends."""
    with Progress(f"prepare by {runner}", megabytes, "MB") as progress:
        while not PipelineState.is_terminal(result.state):
            time.sleep(POLL_SECONDS)
            progress.update(_counts(result)["source_bytes"] / 1e6 - progress.done)
        result.wait_until_finish()
    if result.state != PipelineState.DONE:
        raise UserError(
            f"{runner} ended the pipeline as {result.state}: see its log. What is finished is "
            "kept; the same command goes on."
        )
    counts = _counts(result)
    told = ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in COUNTERS)
    print(f"{runner}: {told} in this call", file=sys.stderr)


def _counts(result: PipelineResult) -> dict[str, int]:
    found = result.metrics().query()["counters"]
    counts = {one.key.metric.name: one.result for one in found}
    return {name: counts.get(name, 0) for name in COUNTERS}


def _count(**amounts: int) -> None:
    for name, amount in amounts.items():
        Metrics.counter("prepare", name).inc(amount)


# ``call`` tells the pipelines of one process apart.
@lru_cache(64)
def _opened(folder: str, call: str) -> tuple[PrepareJob, str]:
    """What ``_hand_over`` laid in ``folder``."""
    return pickle.loads((epath.Path(folder) / "beam" / "order.pickle").read_bytes())


@lru_cache(1)
def _tokenizer(vocabulary: str, call: str) -> Tokenizer:
    """The tokenizer copied to ``vocabulary``."""
    return load_tokenizer(vocabulary)


@contextlib.contextmanager
def _failure_noted(folder: str, name: str) -> Iterator[None]:
    try:
        yield
    except UnreachableError:  # Beam tries again.
        raise
    except UserError as error:
        file = epath.Path(folder) / "beam" / "failed" / f"{name}.txt"
        write_atomic(file, str(error).encode())


def _files(folder: str, call: str) -> Iterator[tuple[str, int]]:
    order, _ = _opened(folder, call)
    count = 1 if order.sources.dataset else len(order.sources.files)
    yield from ((folder, number) for number in range(count))


def _measure(element: tuple[str, int], call: str) -> Iterator[tuple[str, tuple[int, Any]]]:
    """The places of a file's blocks, int64 (blocks, 3); None where it is broken."""
    folder, number = element
    order, _ = _opened(folder, call)
    file = epath.Path(folder) / "beam" / "places" / f"{number:06}.npy"
    places = None
    with _failure_noted(folder, f"0-{number:06}"):
        if not file.exists():
            found = block_offsets(order.sources, order.spec, order.layout, number)
            rows = [(start.first, start.offset, size) for start, size in found]
            content = io.BytesIO()
            np.save(content, np.array(rows, np.int64).reshape(-1, 3))
            write_atomic(file, content.getvalue())
        places = np.load(io.BytesIO(file.read_bytes()))
    yield folder, (number, places)


def _parts(
    element: tuple[str, Iterable[tuple[int, Any]]], call: str
) -> Iterator[tuple[str, ShardPart]]:
    """The parts of the shards that are not finished."""
    folder, files = element
    order, _ = _opened(folder, call)
    files = sorted(files, key=lambda one: one[0])
    if any(places is None for _, places in files):
        return
    rows = ((number, row.tolist()) for number, places in files for row in places)
    places = (BlockOffset(BlockStart(n, first, offset), size) for n, (first, offset, size) in rows)
    finished = finished_shards(order.partial_folder)
    for part in split_into_parts(places, order.layout):
        if part.shard not in finished:
            yield folder, part


def _part_file(folder: str, shard: int, number: int) -> epath.Path:
    return epath.Path(folder) / "beam" / "parts" / f"{shard:05}-{number:05}.spans"


def _encode(element: tuple[str, ShardPart], call: str) -> Iterator[tuple[tuple[str, int], int]]:
    """Encode a part into its file; its number, -1 where its sources are broken."""
    folder, part = element
    order, vocabulary = _opened(folder, call)
    file = _part_file(folder, part.shard, part.number)
    number = -1
    with _failure_noted(folder, f"1-{part.shard:05}-{part.number:05}"):
        if not file.exists():
            content = io.BytesIO()
            for span in iter_spans(order.sources, order.spec, order.layout, part):
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
    """Write a shard of its parts, which are then no longer needed."""
    (folder, shard), numbers = element
    order, _ = _opened(folder, call)
    numbers = sorted(numbers)
    if numbers[0] < 0:
        return
    files = [_part_file(folder, shard, number) for number in numbers]
    with _failure_noted(folder, f"2-{shard:05}"):
        # A machine may die after this and before the end, and another one try again.
        if not (order.partial_folder / f"{shard:05}.json").exists():
            summary = write_shard(order.partial_folder, shard, order.spec, _encoded(files))
            _count(shards=1, records=summary.records)
        for file in files:
            file.unlink(missing_ok=True)
    yield from ()


def _encoded(files: list[epath.Path]) -> Iterator[EncodedSpan]:
    for file in files:
        content = io.BytesIO(file.read_bytes())
        while content.tell() < content.getbuffer().nbytes:
            yield pickle.load(content)
