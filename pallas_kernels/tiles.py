"""The table of tiles of scores that packed rows need, over which a kernel's grid runs.

A packed row of many documents needs few of its tiles: those on or below the diagonal whose queries
and keys share a document. The table lists them, so that a kernel neither fetches nor computes
others.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

FIRST, LAST, CROSSING, DIAGONAL = 1, 2, 4, 8
"""Flags of a tile: the first of its query block, the last of it, crossed by a segment's border, on
the diagonal."""

_FLAG_BITS = 4


class TileTable(NamedTuple):
    """The needed tiles of all rows, those of a query block adjacent.

    The shape of ``entries`` is static, so it has room for the most tiles there can be. Only the
    first ``count`` entries are valid.
    """

    count: Int[Array, ""]
    entries: Int[Array, " tiles"]
    """Row, query block, key block and flags in one int32 each, because scalar memory is small."""


def needed_tiles(
    segment_ids: Int[Array, "batch length"],
    block: int,
    first_key: Int[Array, ""] | int = 0,
    num_keys: int | None = None,
    query_blocks: Int[Array, " queries"] | None = None,
) -> TileTable:
    """Return the tiles of ``block`` x ``block`` scores that hold a visible pair, in order.

    A query block visits all key blocks from the first that it needs to the diagonal. If equal ids
    are adjacent, as in a packed row, these are just the needed ones; if an id recurs, those between
    are visited as well.

    Args:
        segment_ids: The segments of the rows; ``length`` is a multiple of ``block``.
        block: Number of queries, and of keys, per tile.
        first_key: Number of the first key block to include.
        num_keys: Number of key blocks to include; None includes all.
        query_blocks: Numbers of the row's blocks that the queries are; None if they are all of
            them. The query of an entry is an index into this array.

    Raises:
        ValueError: If the rows are too many to number in an entry's bits.
    """
    batch, length = segment_ids.shape
    blocks = length // block
    bits = _bits(blocks)
    if batch << (2 * bits + _FLAG_BITS) > 2**31:
        raise ValueError(
            f"{batch} rows of {blocks} blocks are too many for one call: split the batch"
        )
    num_keys = num_keys or blocks
    # Upper bound of the number of tiles: spans start at key 0 and every tile up to the diagonal is
    # needed.
    max_tiles = batch * (blocks * num_keys - num_keys * (num_keys - 1) // 2)
    if query_blocks is not None:
        max_tiles = batch * query_blocks.size * num_keys
    ids = segment_ids.reshape(batch, blocks, block)
    low, high = ids.min(-1), ids.max(-1)
    number = jnp.arange(blocks)
    # Two blocks can share a segment only if their ranges of ids overlap. Exact for packed rows.
    shared = (low[:, :, None] <= high[:, None]) & (low[:, None] <= high[:, :, None])
    # The argmax of booleans is the first True; the diagonal is always True.
    first = jnp.argmax(shared & (number[:, None] >= number[None])[None], axis=-1)
    query_blocks = number if query_blocks is None else query_blocks
    queries = query_blocks.size
    first = jnp.maximum(first[:, query_blocks], first_key).reshape(-1)
    last = jnp.tile(jnp.minimum(query_blocks, first_key + num_keys - 1), batch)
    counts = jnp.maximum(last - first + 1, 0)
    # The tiles of the query blocks follow one another in the table: a block's entries end here.
    ends = jnp.cumsum(counts)
    # Entry n belongs to the query block ("owner") whose range of entries, up to ``ends``, holds n.
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
    """An entry of the table, unpacked."""

    row: Int[Array, "..."]
    query: Int[Array, "..."]
    key: Int[Array, "..."]
    flags: Int[Array, "..."]


def unpack(entry: Int[Array, "..."], blocks: int) -> Tile:
    """Unpack an entry of a table with ``blocks`` blocks per row."""
    bits = _bits(blocks)
    mask = (1 << bits) - 1
    return Tile(
        entry >> (2 * bits + _FLAG_BITS),
        entry >> (bits + _FLAG_BITS) & mask,
        entry >> _FLAG_BITS & mask,
        entry & ((1 << _FLAG_BITS) - 1),
    )


def _bits(blocks: int) -> int:
    """Return the number of bits of a block's number."""
    return (blocks - 1).bit_length()
