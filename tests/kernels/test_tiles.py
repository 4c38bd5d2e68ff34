"""Tests that the table has every tile that a row needs and, for packed rows, only needed tiles."""

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.tiles import CROSSING, DIAGONAL, FIRST, LAST, needed_tiles, unpack

BLOCK = 4
TABLE = jax.jit(needed_tiles, static_argnums=(1, 3))


def visited(ids: np.ndarray, first_key: int = 0, num_keys: int | None = None) -> list[tuple]:
    """Return (row, query block, key block, flags) of each valid entry of the table for ``ids``."""
    table = TABLE(jnp.asarray(ids), BLOCK, first_key, num_keys)
    tiles = unpack(table.entries[: int(table.count)], ids.shape[1] // BLOCK)
    return list(zip(*(np.asarray(part).tolist() for part in tiles), strict=True))


def visible(ids: np.ndarray, row: int, query: int, key: int) -> np.ndarray:
    """Return the mask (queries, keys) of the visible pairs of a tile, computed with NumPy."""
    q, k = (np.arange(n * BLOCK, (n + 1) * BLOCK) for n in (query, key))
    return (q[:, None] >= k) & (ids[row, q][:, None] == ids[row, k])


TABLES = (
    st.integers(1, 5).flatmap(
        lambda blocks: st.lists(
            st.lists(st.integers(1, 4), min_size=blocks * BLOCK, max_size=blocks * BLOCK),
            min_size=1,
            max_size=3,
        )
    ),
    st.booleans(),
    st.data(),
)


@settings(deadline=None, max_examples=12)
@given(*TABLES)
def test_table(rows, packed, data):
    check_table(rows, packed, data)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(*TABLES)
def test_more_tables(rows, packed, data):
    check_table(rows, packed, data)


def check_table(rows, packed, data):
    """Assert that the tables for spans of keys have all needed tiles, in order and with flags."""
    ids = np.array([np.sort(row) if packed else row for row in rows], np.int32)
    blocks = ids.shape[1] // BLOCK
    span = data.draw(st.integers(1, blocks))
    passes = [visited(ids, first, span) for first in range(0, blocks, span)]
    assert sorted(t[:3] for tiles in passes for t in tiles) == [t[:3] for t in visited(ids)]
    for first, tiles in zip(range(0, blocks, span), passes, strict=True):
        for number, (row, query, key, flags) in enumerate(tiles):
            pairs = visible(ids, row, query, key)
            neighbors = [
                tiles[n][:2] if 0 <= n < len(tiles) else () for n in (number - 1, number + 1)
            ]
            assert bool(flags & FIRST) == (neighbors[0] != (row, query))
            assert bool(flags & LAST) == (neighbors[1] != (row, query))
            assert bool(flags & DIAGONAL) == (query == key)
            assert flags & CROSSING or query == key or pairs.all()
            assert not (packed and flags & CROSSING and query != key and pairs.all())
        # In order: the tiles of a query block, and of a row, are adjacent.
        assert [t[:3] for t in tiles] == sorted(t[:3] for t in tiles)
        here = {t[:3] for t in tiles}
        for row, query, key in np.ndindex(len(ids), blocks, blocks):
            if first <= key < first + span and visible(ids, row, query, key).any():
                assert (row, query, key) in here
            elif packed:
                assert (row, query, key) not in here


@settings(deadline=None, max_examples=8)
@given(st.lists(st.integers(1, 4), min_size=24, max_size=24), st.permutations(range(6)), st.data())
def test_table_of_some_query_blocks_is_a_part_of_the_whole(row, order, data):
    """A table for some query blocks has the same tiles for them as the table for all blocks."""
    ids, query_blocks = jnp.asarray([sorted(row)] * 2), order[: data.draw(st.sampled_from([1, 3]))]
    first, span = data.draw(st.sampled_from([(0, None), (2, 2), (4, 2)]))
    table = TABLE(ids, BLOCK, first, span, jnp.asarray(query_blocks))
    tiles = unpack(table.entries[: int(table.count)], 6)
    found = zip(*(np.asarray(part).tolist() for part in tiles), strict=True)
    whole = visited(np.asarray(ids), first, span)
    assert [(row, query_blocks[query], *rest) for row, query, *rest in found] == sorted(
        (tile for tile in whole if tile[1] in query_blocks),
        key=lambda t: (t[0], query_blocks.index(t[1]), t[2]),
    )


def test_zigzag_order_balances_devices():
    """In a row of one document, all devices with chunks n and 7 - n need equally many tiles."""
    ids = jnp.ones((1, 16 * BLOCK), jnp.int32)
    counts = [
        int(
            TABLE(
                ids, BLOCK, 0, None, jnp.asarray([2 * n, 2 * n + 1, 14 - 2 * n, 15 - 2 * n])
            ).count
        )
        for n in range(4)
    ]
    assert set(counts) == {16 * 17 // 2 // 4}


def test_too_many_rows_are_rejected():
    with pytest.raises(ValueError, match="too many for one call"):
        needed_tiles(jnp.zeros((2**15, 1024), jnp.int32), BLOCK)
