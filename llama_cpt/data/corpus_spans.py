"""Where the stream of a corpus's documents is cut: into spans for workers, spans into shards."""

from collections.abc import Iterator
from dataclasses import dataclass

from llama_cpt.data.chat_units import ChatRecipe
from llama_cpt.data.documents import Block, read_blocks
from llama_cpt.data.encoding import Span
from llama_cpt.data.json_records import read_record_blocks
from llama_cpt.data.sources import Sources


@dataclass(frozen=True)
class Recipe:
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
    chat: ChatRecipe | None = None
    """Of chat data; None for documents."""


@dataclass(frozen=True)
class Layout:
    """Where the stream of documents is cut; sizes in bytes of (decompressed) source."""

    span_bytes: int
    """What a worker encodes at a time: a fraction of a second's work."""
    shard_bytes: int


def layout_of(source_bytes: int, sequence_length: int) -> Layout:
    """Shards of a large corpus are few enough to keep open, of a small one enough to resume by.

    A shard drops half a row on average: at least a thousand rows each make that 0.05 %.
    """
    thousand_rows = 4096 * (sequence_length + 1)  # Text has about four bytes a token.
    return Layout(2 << 20, max(64 << 20, thousand_rows, source_bytes // 64))


def spans_of(sources: Sources, recipe: Recipe, layout: Layout) -> Iterator[Span]:
    """The corpus's raw documents in order, cut into spans and shards."""

    def span() -> Span:
        skip_bad = recipe.bad_documents == "skip"
        return Span(shard, tuple(blocks), recipe.text_field, skip_bad, recipe.chat)

    shard, blocks, span_size, shard_size = 0, [], 0, 0
    # Blocks end where documents do, short of what is asked: with few a span, spans overshoot less.
    for block in _blocks(sources, recipe, -(-layout.span_bytes // 4)):
        blocks.append(block)
        span_size += block.size
        if span_size >= layout.span_bytes:
            yield span()
            shard_size += span_size
            blocks, span_size = [], 0
            if shard_size >= layout.shard_bytes:
                shard, shard_size = shard + 1, 0
    if blocks:
        yield span()


def _blocks(sources: Sources, recipe: Recipe, block_bytes: int) -> Iterator[Block]:
    if recipe.chat:
        return read_record_blocks(sources, block_bytes)
    return read_blocks(sources, recipe.text_field, block_bytes)
