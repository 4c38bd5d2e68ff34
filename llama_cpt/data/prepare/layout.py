"""The layout of a prepared corpus: how its documents are cut into spans, parts and shards.

The documents form one stream. A span is the work of one worker process; consecutive spans form a
shard. When many machines prepare a corpus, the spans of a shard are grouped into parts, each of
which can be read by itself.
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
# Source bytes of a part, the work unit of one of many machines: about ten seconds on one core.
PART_BYTES = 64 << 20


@dataclass(frozen=True)
class PrepareSpec:
    """The settings on which the rows of a prepared corpus depend, next to its sources."""

    corpus: str
    tokenizer: str
    """Fingerprint of the vocabulary."""
    sequence_length: int
    """Tokens per row without the last target; 0 for held-out documents."""
    text_field: str
    bad_documents: str
    dataset: str
    """The source if it is a TFDS name, else empty."""
    chat: ChatSpec | None = None
    """The settings for chat data; None for documents."""


@dataclass(frozen=True)
class ShardLayout:
    """Sizes at which the stream of documents is cut, in bytes of the decompressed sources."""

    span_bytes: int
    """Size of a worker's unit of work, a fraction of a second."""
    shard_bytes: int


@dataclass(frozen=True)
class PrepareJob:
    """A corpus that is to be prepared into ``folder``."""

    folder: epath.Path
    sources: Sources
    spec: PrepareSpec
    digests: list[dict[str, Any]]
    """Stats and digest of each source file."""
    layout: ShardLayout

    @property
    def partial_folder(self) -> epath.Path:
        """The folder of finished shards while the corpus is incomplete."""
        return self.folder / PARTIAL_FOLDER

    @property
    def megabytes(self) -> float:
        """Size of the sources on disk in MB."""
        return sum(source["bytes"] for source in self.digests) / 1e6


class BlockOffset(NamedTuple):
    """The start of a block and its size in bytes."""

    start: BlockStart
    size: int


class ShardPart(NamedTuple):
    """A run of consecutive spans of a shard."""

    shard: int
    number: int
    """Index within the shard."""
    start: BlockStart
    blocks: int
    """Number of blocks."""


def make_layout(source_bytes: int, sequence_length: int) -> ShardLayout:
    """Return the layout for ``source_bytes`` of sources.

    A large corpus has at most 64 shards, few enough to keep open; a small one has shards of 64 MiB,
    after each of which preparation can resume. A shard drops half a row on average, which is 0.05 %
    with at least a thousand rows per shard.
    """
    thousand_rows = 4096 * (sequence_length + 1)  # Text has about four bytes per token.
    return ShardLayout(2 << 20, max(64 << 20, thousand_rows, source_bytes // 64))


def iter_spans(
    sources: Sources, spec: PrepareSpec, layout: ShardLayout, part: ShardPart | None = None
) -> Iterator[Span]:
    """Yield the raw documents of the corpus, or of one ``part``, in order as spans."""
    blocks = _iter_blocks(sources, spec, layout, part.start if part else FIRST_BLOCK)
    if part:
        blocks = itertools.islice(blocks, part.blocks)
    skip_bad = spec.bad_documents == "skip"
    for shard, span in _group_into_spans(blocks, layout, part.shard if part else 0):
        yield Span(shard, tuple(span), spec.text_field, skip_bad, spec.chat)


def block_offsets(
    sources: Sources, spec: PrepareSpec, layout: ShardLayout, file: int
) -> Iterator[BlockOffset]:
    """Yield start and size of the blocks of one file; a TFDS dataset has only file 0."""
    own = sources if sources.dataset else Sources(sources.corpus, (sources.files[file],))
    offset = 0
    for block in _iter_blocks(own, spec, layout, FIRST_BLOCK):
        yield BlockOffset(BlockStart(file, block.first, offset), block.size)
        offset += block.size


def split_into_parts(offsets: Iterable[BlockOffset], layout: ShardLayout) -> Iterator[ShardPart]:
    """Yield the parts of a corpus from all its blocks, cut into spans as ``iter_spans`` does."""
    spans = _group_into_spans(offsets, layout)
    for shard, own in itertools.groupby(spans, key=lambda one: one[0]):
        number, held, size = 0, [], 0
        for _, span in own:
            held += span
            size += sum(offset.size for offset in span)
            if size >= PART_BYTES:
                yield ShardPart(shard, number, held[0].start, len(held))
                number, held, size = number + 1, [], 0
        if held:
            yield ShardPart(shard, number, held[0].start, len(held))


def _group_into_spans(
    blocks: Iterable[Any], layout: ShardLayout, shard: int = 0
) -> Iterator[tuple[int, list[Any]]]:
    """Yield the shard and the blocks of each span."""
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


def _iter_blocks(
    sources: Sources, spec: PrepareSpec, layout: ShardLayout, start: BlockStart
) -> Iterator[Block]:
    # A block ends with the document that reaches its size, so spans exceed span_bytes by less if
    # they have several blocks.
    block_bytes = -(-layout.span_bytes // 4)
    if spec.chat:
        return read_record_blocks(sources, block_bytes, start)
    return read_blocks(sources, spec.text_field, block_bytes, start)
