"""The table of the tiles of scores that an attention kernel has to compute for packed rows.

A tile is a block of queries and a block of keys. A tile is needed if it is on or below the diagonal
and one of its queries belongs to the same segment as one of its keys. If a row consists of many
segments, only some of its tiles are needed. The grid of a kernel iterates over the table, so the
kernel does not fetch or compute the remaining tiles.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

FIRST, LAST, CROSSING, DIAGONAL = 1, 2, 4, 8
"""Flags of a tile. FIRST and LAST mark the first and the last tile of a query block. CROSSING marks
a tile whose queries and keys do not all have the same segment id. DIAGONAL marks a tile on the
diagonal."""

_FLAG_BITS = 4


class TileTable(NamedTuple):
    """The needed tiles of all rows. The tiles of a query block are adjacent, sorted by key block.

    The length of ``entries`` is static: an upper bound on the number of needed tiles. Only the
    first ``count`` entries are valid.
    """

    count: Int[Array, ""]
    entries: Int[Array, " tiles"]
    """One int32 per tile, which packs the row, the query block, the key block and the flags.

    Scalar memory is too small for one int32 per field.
    """


def needed_tiles(
    segment_ids: Int[Array, "batch length"],
    block: int,
    first_key: Int[Array, ""] | int = 0,
    num_keys: int | None = None,
    query_blocks: Int[Array, " queries"] | None = None,
) -> TileTable:
    """Return the table of the tiles in which at least one query attends to a key.

    For each query block, the table contains all key blocks from the first needed block up to the
    diagonal. If equal segment ids are adjacent, as in a packed row, all of these tiles are needed.
    If a segment id recurs later in a row, the table also contains the tiles in between, even if
    they are not needed.

    Args:
        segment_ids: Segment ids of the rows; ``length`` is a multiple of ``block``.
        block: Number of queries and number of keys per tile.
        first_key: Index of the first key block to include.
        num_keys: Number of key blocks to include; None includes all.
        query_blocks: Indices of the blocks of a row for which there are queries; None for all
            blocks. The query block in an entry of the table is an index into this array.

    Raises:
        ValueError: If an int32 entry has too few bits for the number of rows and blocks.
    """
    batch, length = segment_ids.shape
    blocks = length // block
    bits = _bits(blocks)
    if batch << (2 * bits + _FLAG_BITS) > 2**31:
        raise ValueError(
            f"{batch} rows of {blocks} blocks are too many for one call; split the batch."
        )
    num_keys = num_keys or blocks
    # Upper bound on the number of tiles. It is reached if the included keys start at block 0 and
    # every tile up to the diagonal is needed.
    max_tiles = batch * (blocks * num_keys - num_keys * (num_keys - 1) // 2)
    if query_blocks is not None:
        max_tiles = batch * query_blocks.size * num_keys
    ids = segment_ids.reshape(batch, blocks, block)
    low, high = ids.min(-1), ids.max(-1)
    number = jnp.arange(blocks)
    # Two blocks can share a segment only if their ranges of ids overlap. For packed rows, the
    # converse is true as well.
    shared = (low[:, :, None] <= high[:, None]) & (low[:, None] <= high[:, :, None])
    # The argmax of booleans is the index of the first True. A True always exists, because a query
    # block shares its segments with itself.
    first = jnp.argmax(shared & (number[:, None] >= number[None])[None], axis=-1)
    query_blocks = number if query_blocks is None else query_blocks
    queries = query_blocks.size
    first = jnp.maximum(first[:, query_blocks], first_key).reshape(-1)
    last = jnp.tile(jnp.minimum(query_blocks, first_key + num_keys - 1), batch)
    counts = jnp.maximum(last - first + 1, 0)
    # The entries of query block n end before entry ``ends[n]``.
    ends = jnp.cumsum(counts)
    # The owner of an entry is the query block whose range of entries contains it.
    entry = jnp.arange(max_tiles)
    owner = jnp.minimum((entry[:, None] >= ends[None]).sum(-1), batch * queries - 1)
    row, query = jax.lax.div(owner, queries), jax.lax.rem(owner, queries)
    block_number = query_blocks[query]
    key = jnp.clip(entry - (ends - counts)[owner] + first[owner], 0, blocks - 1)
    whole = (
        (low == high)[row, block_number]
        & (low == high)[row, key]
        & (low[row, block_number] == low[row, key])
    )
    flags = (
        jnp.where(key == first[owner], FIRST, 0)
        | jnp.where(key == last[owner], LAST, 0)
        | jnp.where(whole, 0, CROSSING)
        | jnp.where(key == block_number, DIAGONAL, 0)
    )
    entries = ((row << bits | query) << bits | key) << _FLAG_BITS | flags
    return TileTable(ends[-1].astype(jnp.int32), entries.astype(jnp.int32))


class Tile(NamedTuple):
    """The fields of an entry of a ``TileTable``."""

    row: Int[Array, "..."]
    query: Int[Array, "..."]
    key: Int[Array, "..."]
    flags: Int[Array, "..."]


def unpack(entry: Int[Array, "..."], blocks: int) -> Tile:
    """Return the fields of a table entry, for rows of ``blocks`` blocks."""
    bits = _bits(blocks)
    mask = (1 << bits) - 1
    return Tile(
        entry >> (2 * bits + _FLAG_BITS),
        entry >> (bits + _FLAG_BITS) & mask,
        entry >> _FLAG_BITS & mask,
        entry & ((1 << _FLAG_BITS) - 1),
    )


def _bits(blocks: int) -> int:
    """Return the number of bits that are needed for the index of one of ``blocks`` blocks."""
    return (blocks - 1).bit_length()
