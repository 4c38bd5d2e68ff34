"""Which tiles of scores packed rows need, as a flat table that a kernel's grid walks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

FIRST, LAST, CROSSING, DIAGONAL = 1, 2, 4, 8
"""Flags of a tile: the first of its query block, the last; one that a segment's border crosses;
one on the diagonal."""

_FLAG_BITS = 4


class TileTable(NamedTuple):
    """Needed tiles of all rows, those of a query block side by side; the first ``count`` count."""

    count: Int[Array, ""]
    entries: Int[Array, " tiles"]
    """Row, query block, key block and flags, packed: scalar memory is small."""


def needed_tiles(
    segment_ids: Int[Array, "batch length"],
    block: int,
    first_key: Int[Array, ""] | int = 0,
    num_keys: int | None = None,
    places: Int[Array, " queries"] | None = None,
) -> TileTable:
    """Tiles of ``block`` x ``block`` scores that hold a visible pair, a query block after another.

    Only those of the ``num_keys`` key blocks (default: all) from block ``first_key`` on; only those
    of query blocks ``places`` (default: all) of the row, an entry's query being its number among
    them. A query block visits all key blocks from the first that it needs to the diagonal: just the
    needed ones where equal ids lie side by side, as in a packed row; where an id recurs, those
    between as well. Raises ValueError where the rows are too many to number.
    """
    batch, length = segment_ids.shape
    blocks = length // block
    bits = _bits(blocks)
    if batch << (2 * bits + _FLAG_BITS) > 2**31:
        raise ValueError(f"{batch} rows of {blocks} blocks are too many for one call: split them")
    num_keys = num_keys or blocks
    # The most that there can be: with the keys from 0 on, and all up to the diagonal needed.
    most = batch * (blocks * num_keys - num_keys * (num_keys - 1) // 2)
    if places is not None:
        most = batch * places.size * num_keys
    ids = segment_ids.reshape(batch, blocks, block)
    low, high = ids.min(-1), ids.max(-1)
    number = jnp.arange(blocks)
    shared = (low[:, :, None] <= high[:, None]) & (low[:, None] <= high[:, :, None])
    first = jnp.argmax(shared & (number[:, None] >= number[None])[None], axis=-1)
    places = number if places is None else places
    queries = places.size
    first = jnp.maximum(first[:, places], first_key).reshape(-1)
    last = jnp.tile(jnp.minimum(places, first_key + num_keys - 1), batch)
    counts = jnp.maximum(last - first + 1, 0)
    ends = jnp.cumsum(counts)
    place = jnp.arange(most)
    at = jnp.minimum((place[:, None] >= ends[None]).sum(-1), batch * queries - 1)
    row, query = jax.lax.div(at, queries), jax.lax.rem(at, queries)
    own = places[query]
    key = jnp.clip(place - (ends - counts)[at] + first[at], 0, blocks - 1)
    whole = (low == high)[row, own] & (low == high)[row, key] & (low[row, own] == low[row, key])
    flags = (
        jnp.where(key == first[at], FIRST, 0)
        | jnp.where(key == last[at], LAST, 0)
        | jnp.where(whole, 0, CROSSING)
        | jnp.where(key == own, DIAGONAL, 0)
    )
    entries = ((row << bits | query) << bits | key) << _FLAG_BITS | flags
    return TileTable(ends[-1].astype(jnp.int32), entries.astype(jnp.int32))


class Tile(NamedTuple):
    """One entry, unpacked."""

    row: Int[Array, "..."]
    query: Int[Array, "..."]
    key: Int[Array, "..."]
    flags: Int[Array, "..."]


def unpack(entry: Int[Array, "..."], blocks: int) -> Tile:
    """The tile that an entry of a table with ``blocks`` blocks a row means."""
    bits = _bits(blocks)
    mask = (1 << bits) - 1
    return Tile(
        entry >> (2 * bits + _FLAG_BITS),
        entry >> (bits + _FLAG_BITS) & mask,
        entry >> _FLAG_BITS & mask,
        entry & ((1 << _FLAG_BITS) - 1),
    )


def _bits(blocks: int) -> int:
    return (blocks - 1).bit_length()
