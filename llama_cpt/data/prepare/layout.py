"""Division of the documents of a corpus into blocks, spans, parts and shards.

The documents of all source files, in order, form one stream. The stream is divided into blocks of
consecutive documents. A block is read as a unit. Consecutive blocks form a span, which a worker
process encodes. Consecutive spans form a shard, which is one output file. If many machines prepare
a corpus, consecutive spans of a shard form a part, which one machine reads and encodes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
import itertools
from typing import Any, NamedTuple

from etils import epath

from llama_cpt.data.chat.examples import ChatSpec
from llama_cpt.data.prepare.dropped import NOTHING_DROPPED, DroppedDocuments, dropped_in
from llama_cpt.data.prepare.tokenize_pool import Span
from llama_cpt.data.sources.documents import FIRST_BLOCK, Block, BlockStart, read_blocks
from llama_cpt.data.sources.files import Sources
from llama_cpt.data.sources.json_records import read_record_blocks
from llama_cpt.data.tokenizer.document_tokens import DocumentTokens

PARTIAL_FOLDER = "partial"
# Size of a part in source bytes; reading and encoding a part takes about ten seconds on one core.
PART_BYTES = 64 << 20


@dataclass(frozen=True)
class PrepareSpec:
    """Settings that, together with the source files, determine the rows of a corpus."""

    corpus: str
    tokenizer: str
    """Fingerprint of the tokenizer."""
    sequence_length: int
    """Number of inputs per row, as in ``data.sequence_length``; 0 for held-out documents."""
    text_field: str
    bad_documents: str
    dataset: str
    """The ``source`` of the corpus if it is a TFDS name, else empty."""
    document_tokens: DocumentTokens | None = None
    """The tokens before and after each document; None for chat data."""
    chat: ChatSpec | None = None
    """The settings for chat data; None for documents."""
    dropped: str = ""
    """Digest of the list of documents that are left out; empty if none is left out."""


@dataclass(frozen=True)
class ShardLayout:
    """Sizes at which spans and shards end, in bytes of the decompressed sources."""

    span_bytes: int
    """Size of a span, which a worker process encodes in a fraction of a second."""
    shard_bytes: int


@dataclass(frozen=True)
class PrepareJob:
    """A corpus to prepare in ``folder``, with its sources, settings and layout."""

    folder: epath.Path
    sources: Sources
    spec: PrepareSpec
    digests: list[dict[str, Any]]
    """Path, size in bytes, modification time and digest of each source file."""
    layout: ShardLayout
    dropped: DroppedDocuments = NOTHING_DROPPED
    """The documents that are left out of the rows."""

    @property
    def partial_folder(self) -> epath.Path:
        """Folder that contains the finished shards until all shards are finished."""
        return self.folder / PARTIAL_FOLDER

    @property
    def megabytes(self) -> float:
        """Size of the sources on disk in MB."""
        return sum(source["bytes"] for source in self.digests) / 1e6


class BlockOffset(NamedTuple):
    """Start of a block, and its size in decompressed bytes."""

    start: BlockStart
    size: int


class ShardPart(NamedTuple):
    """Consecutive spans of a shard that one machine reads and encodes."""

    shard: int
    number: int
    """Index of the part within its shard."""
    start: BlockStart
    blocks: int
    """Number of blocks in the part."""


def make_layout(source_bytes: int, sequence_length: int) -> ShardLayout:
    """Return the layout for sources of ``source_bytes`` bytes.

    A large corpus has about 64 shards, so that a reader can keep all of them open. A small corpus
    has shards of 64 MiB, so that preparation can resume after each 64 MiB. On average, half a row
    is dropped per shard: 0.05 % of a shard of a thousand rows.
    """
    thousand_rows = 4096 * (sequence_length + 1)  # Text has about four bytes per token.
    return ShardLayout(2 << 20, max(64 << 20, thousand_rows, source_bytes // 64))


def iter_spans(
    sources: Sources,
    spec: PrepareSpec,
    layout: ShardLayout,
    part: ShardPart | None = None,
    dropped: DroppedDocuments = NOTHING_DROPPED,
) -> Iterator[Span]:
    """Yield the spans of the whole corpus, or of one ``part``, in order.

    ``dropped`` lists the documents that are left out when a span is encoded.
    """
    blocks = _iter_blocks(sources, spec, layout, part.start if part else FIRST_BLOCK)
    if part:
        blocks = itertools.islice(blocks, part.blocks)
    skip_bad = spec.bad_documents == "skip"
    by_path = dropped.by_path(sources)
    for shard, span in _group_into_spans(blocks, layout, part.shard if part else 0):
        left_out = tuple(dropped_in(block, by_path) for block in span)
        yield Span(
            shard,
            tuple(span),
            spec.text_field,
            skip_bad,
            spec.document_tokens,
            spec.chat,
            left_out if any(left_out) else (),
        )


def block_offsets(
    sources: Sources, spec: PrepareSpec, layout: ShardLayout, file: int
) -> Iterator[BlockOffset]:
    """Yield the start and size of each block of the source file with index ``file``.

    A TFDS dataset counts as a single file with index 0.
    """
    own = sources if sources.dataset else Sources(sources.corpus, (sources.files[file],))
    offset = 0
    for block in _iter_blocks(own, spec, layout, FIRST_BLOCK):
        yield BlockOffset(BlockStart(file, block.first, offset), block.size)
        offset += block.size


def split_into_parts(offsets: Iterable[BlockOffset], layout: ShardLayout) -> Iterator[ShardPart]:
    """Yield the parts of a corpus, given the offsets of all its blocks.

    The spans of the parts are the same as the spans that ``iter_spans`` yields.
    """
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
    """Yield the shard index and the blocks of each span; ``shard`` is the first shard index."""
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
    """Yield the blocks of ``sources``, starting at ``start``."""
    # A block ends with the document that reaches block_bytes. The smaller the blocks are, the less
    # a span exceeds span_bytes.
    block_bytes = -(-layout.span_bytes // 4)
    if spec.chat:
        return read_record_blocks(sources, block_bytes, start)
    return read_blocks(sources, spec.text_field, block_bytes, start)
