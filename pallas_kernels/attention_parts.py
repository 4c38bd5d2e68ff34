"""What the forward and the backward kernel of attention share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
import functools
import math
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.block_sizes import BlockSizes
from pallas_kernels.tiles import CROSSING, DIAGONAL, unpack

LOG2_E = math.log2(math.e)
MASK_VALUE = -0.7 * float(jnp.finfo(jnp.float32).max)
"""The score of an invisible pair; finite, so that a difference of two is no NaN."""
LANES = 128
VMEM_BYTES = 64 << 20


@dataclass(frozen=True)
class Heads:
    """How the heads of a call lie in the kernels' arrays, (batch, length, heads x head_dim)."""

    query: int
    key: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.query // self.key

    @property
    def keys_together(self) -> int:
        """Key heads of a step of the grid: the fewest that fill whole lanes, else all."""
        fitting = (n for n in range(1, self.key) if self.key % n == 0)
        return next((n for n in fitting if n * self.head_dim % LANES == 0), self.key)

    @property
    def together(self) -> int:
        """Query heads of a step of the grid."""
        return self.keys_together * self.group

    @property
    def steps(self) -> int:
        """Steps of the grid that all heads take."""
        return self.key // self.keys_together

    def at(self, head: int) -> slice:
        """Where a step's query head lies."""
        return slice(head * self.head_dim, (head + 1) * self.head_dim)

    def key_at(self, head: int) -> slice:
        """Where the key head of a step's query head lies."""
        return self.at(head // self.group)


class Rows(NamedTuple):
    """What the kernels know of the rows beside their values."""

    segment_ids: Int[Array, "batch length"]
    places: Int[Array, " query_blocks"] | None
    """Which blocks of the rows the queries are; None is all."""

    def key_ids(self) -> Int[Array, "batch 1 length"]:
        """Of the keys, as the kernels take them."""
        return self.segment_ids.astype(jnp.int32)[:, None]

    def query_ids(self, tile: int) -> Int[Array, "batch 1 queries"]:
        """Of the queries, in blocks of ``tile``."""
        ids = self.key_ids()
        if self.places is None:
            return ids
        return ids.reshape(len(ids), -1, tile)[:, self.places].reshape(len(ids), 1, -1)


class Residuals(NamedTuple):
    """What the backward pass needs of the forward pass."""

    query: Float[Array, "batch queries heads_x_dim"]
    key: Float[Array, "batch length kv_heads_x_dim"]
    value: Float[Array, "batch length kv_heads_x_dim"]
    rows: Rows
    out: Float[Array, "batch queries heads_x_dim"]
    log_sum: Float[Array, "batch steps together queries"]
    """Base-2 logarithm of each query's sum of exponentials."""


@dataclass(frozen=True)
class KernelConfig:
    """How the kernels walk: static, so that equal walks are compiled once."""

    heads: Heads
    sizes: BlockSizes
    blocks: int
    """Blocks of a row."""
    interpret: Any

    @property
    def specs(self) -> "Specs":
        """Block specs of such a walk."""
        return Specs(self.heads, self.sizes.tile, self.blocks)


@dataclass(frozen=True)
class Specs:
    """Block specs on a grid of (heads' steps, tiles); the table of tiles comes first."""

    heads: Heads
    tile: int
    blocks: int

    def query(self) -> pl.BlockSpec:
        """Of arrays like the queries."""
        width = self.heads.together * self.heads.head_dim
        return pl.BlockSpec((1, self.tile, width), self._index("query"))

    def key(self) -> pl.BlockSpec:
        """Of arrays like the keys."""
        width = self.heads.keys_together * self.heads.head_dim
        return pl.BlockSpec((1, self.tile, width), self._index("key"))

    def query_ids(self) -> pl.BlockSpec:
        """Of (batch, 1, length), the queries' part."""
        return pl.BlockSpec((1, 1, self.tile), self._index("query", last=True))

    def key_ids(self) -> pl.BlockSpec:
        """Of (batch, 1, length), the keys' part."""
        return pl.BlockSpec((1, 1, self.tile), self._index("key", last=True))

    def log_sums(self) -> pl.BlockSpec:
        """Of (batch, heads' steps, heads together, length)."""

        def index(step: Any, t: Any, table: Any, *_: Any) -> tuple:
            tile = unpack(table[t], self.blocks)
            return tile.row, step, 0, tile.query

        return pl.BlockSpec((1, 1, self.heads.together, self.tile), index)

    def _index(self, side: str, *, last: bool = False) -> Callable:
        def index(step: Any, t: Any, table: Any, *_: Any) -> tuple:
            tile = unpack(table[t], self.blocks)
            place = getattr(tile, side)
            return (tile.row, 0, place) if last else (tile.row, place, step)

        return index


def dot(a: jax.Array, b: jax.Array, contract: tuple) -> jax.Array:
    """The product over dimension ``contract[0]`` of ``a`` and ``contract[1]`` of ``b``, float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def column(row: jax.Array) -> jax.Array:
    """(1, n) -> (n, 128), all columns equal: in VMEM, for no lane need be spread at its use."""
    bits = jax.lax.bitcast_convert_type(jnp.broadcast_to(row, (LANES, row.shape[1])), jnp.float32)
    return jax.lax.bitcast_convert_type(bits.T, row.dtype)


def software_pipeline(
    scores: Callable[[int, int], Any], parts: list[tuple[int, int]], ahead: int
) -> Iterator[tuple[tuple[int, int], Any]]:
    """Each part with its scores, computed ``ahead`` parts before: so the matrix unit goes on."""
    pending = [scores(*part) for part in parts[:ahead]]
    for number, part in enumerate(parts):
        pending += [scores(*after) for after in parts[number + ahead :][:1]]
        yield part, pending.pop(0)


def dispatch_by_mask(flags: jax.Array, tile: Callable[[bool, bool], None]) -> None:
    """Run ``tile(crossing, diagonal)`` of the tile's kind; only what can hide a pair masks.

    A tile on the diagonal is masked by segment too: few are not crossed.
    """
    crossing, diagonal = flags & CROSSING != 0, flags & DIAGONAL != 0
    pl.when(~crossing & ~diagonal)(functools.partial(tile, False, False))
    pl.when(crossing & ~diagonal)(functools.partial(tile, True, False))
    pl.when(diagonal)(functools.partial(tile, True, True))
