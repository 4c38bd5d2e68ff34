"""Where the stream of a corpus's documents is cut: into spans for workers, spans into shards.

For many machines, the spans of a shard are cut into parts, each of which is read by itself.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
import itertools
from typing import Any, NamedTuple

from etils import epath

from llama_cpt.data.chat.examples import ChatSpec
from llama_cpt.data.prepare.tokenize_pool import Span
from llama_cpt.data.sources.documents import FIRST_BLOCK, Block, BlockStart, read_blocks
from llama_cpt.data.sources.files import Sources
from llama_cpt.data.sources.json_records import read_record_blocks

PARTIAL_FOLDER = "partial"
# What a machine among many encodes at a time: some ten seconds of a core.
PART_BYTES = 64 << 20


@dataclass(frozen=True)
class PrepareSpec:
    """All that the content of a prepared corpus depends on but its sources."""

    corpus: str
    tokenizer: str
    """Fingerprint of the vocabulary."""
    sequence_length: int
    """0 for held-out documents."""
    text_field: str
    bad_documents: str
    dataset: str
    """The source where it is a TFDS name."""
    chat: ChatSpec | None = None
    """Of chat data; None for documents."""


@dataclass(frozen=True)
class ShardLayout:
    """Where the stream of documents is cut; sizes in bytes of (decompressed) source."""

    span_bytes: int
    """What a worker encodes at a time: a fraction of a second's work."""
    shard_bytes: int


@dataclass(frozen=True)
class PrepareJob:
    """A corpus that is to be written in ``folder``."""

    folder: epath.Path
    sources: Sources
    spec: PrepareSpec
    digests: list[dict[str, Any]]
    """The sources' stats and digests."""
    layout: ShardLayout

    @property
    def partial_folder(self) -> epath.Path:
        """Where what is finished lies until all is."""
        return self.folder / PARTIAL_FOLDER

    @property
    def megabytes(self) -> float:
        """Of the sources on disk."""
        return sum(source["bytes"] for source in self.digests) / 1e6


class BlockOffset(NamedTuple):
    """Where a block begins, and its bytes."""

    start: BlockStart
    size: int


class ShardPart(NamedTuple):
    """Consecutive spans of a shard."""

    shard: int
    number: int
    """Within the shard."""
    start: BlockStart
    blocks: int


def make_layout(source_bytes: int, sequence_length: int) -> ShardLayout:
    """Shards of a large corpus are few enough to keep open, of a small one enough to resume by.

    A shard drops half a row on average: at least a thousand rows each make that 0.05 %.
    """
    thousand_rows = 4096 * (sequence_length + 1)  # Text has about four bytes a token.
    return ShardLayout(2 << 20, max(64 << 20, thousand_rows, source_bytes // 64))


def iter_spans(
    sources: Sources, recipe: PrepareSpec, layout: ShardLayout, part: ShardPart | None = None
) -> Iterator[Span]:
    """The raw documents of the corpus or of one ``part`` in order, cut into spans and shards."""
    blocks = _blocks(sources, recipe, layout, part.start if part else FIRST_BLOCK)
    if part:
        blocks = itertools.islice(blocks, part.blocks)
    skip_bad = recipe.bad_documents == "skip"
    for shard, span in _cut(blocks, layout, part.shard if part else 0):
        yield Span(shard, tuple(span), recipe.text_field, skip_bad, recipe.chat)


def block_offsets(
    sources: Sources, recipe: PrepareSpec, layout: ShardLayout, file: int
) -> Iterator[BlockOffset]:
    """The blocks of one file, read and not parsed; of a TFDS dataset there is file 0 alone."""
    own = sources if sources.dataset else Sources(sources.corpus, (sources.files[file],))
    offset = 0
    for block in _blocks(own, recipe, layout, FIRST_BLOCK):
        yield BlockOffset(BlockStart(file, block.first, offset), block.size)
        offset += block.size


def split_into_parts(places: Iterable[BlockOffset], layout: ShardLayout) -> Iterator[ShardPart]:
    """All blocks of a corpus, cut as ``iter_spans`` cuts them, in parts."""
    spans = _cut(places, layout)
    for shard, own in itertools.groupby(spans, key=lambda one: one[0]):
        number, held, size = 0, [], 0
        for _, span in own:
            held += span
            size += sum(place.size for place in span)
            if size >= PART_BYTES:
                yield ShardPart(shard, number, held[0].start, len(held))
                number, held, size = number + 1, [], 0
        if held:
            yield ShardPart(shard, number, held[0].start, len(held))


def _cut(
    blocks: Iterable[Any], layout: ShardLayout, shard: int = 0
) -> Iterator[tuple[int, list[Any]]]:
    """Shard and blocks of each span."""
    held, span_size, shard_size = [], 0, 0
    for block in blocks:
        held.append(block)
        span_size += block.size
        if span_size >= layout.span_bytes:
            yield shard, held
            shard_size += span_size
            held, span_size = [], 0
            if shard_size >= layout.shard_bytes:
                shard, shard_size = shard + 1, 0
    if held:
        yield shard, held


def _blocks(
    sources: Sources, recipe: PrepareSpec, layout: ShardLayout, start: BlockStart
) -> Iterator[Block]:
    # Blocks end where documents do, short of what is asked: with few a span, spans overshoot less.
    block_bytes = -(-layout.span_bytes // 4)
    if recipe.chat:
        return read_record_blocks(sources, block_bytes, start)
    return read_blocks(sources, recipe.text_field, block_bytes, start)
