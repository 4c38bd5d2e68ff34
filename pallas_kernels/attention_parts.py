"""Layouts, block specs and helpers that the forward and the backward attention kernel share."""

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

# The kernels compute exponentials in base 2, which is what the hardware has, so the scores carry
# this factor.
LOG2_E = math.log2(math.e)
MASK_VALUE = -0.7 * float(jnp.finfo(jnp.float32).max)
"""The score of an invisible pair. It is finite because the running maximum starts from it, and the
difference of two infinities would be NaN; the factor 0.7 keeps such a difference from overflowing.
"""
LANES = 128
"""The width of a vector register of a TPU, which the minor dimension of each buffer should fill."""
# In the backward kernel the gradients of 8,192 keys and values of 128, in float32 and in the two
# buffers of each output block, take 16 MiB on their own.
VMEM_BYTES = 64 << 20


@dataclass(frozen=True)
class Heads:
    """The layout of the heads in the kernels' arrays, (batch, length, heads x head_dim).

    Keeping the heads in the minor dimension avoids a transposed copy of each operand. A step of
    the grid takes every query head that shares the step's key heads, so that a tile of keys and
    values is fetched once for the whole group.
    """

    query: int
    key: int
    head_dim: int

    @property
    def group(self) -> int:
        """Number of query heads that share a key head."""
        return self.query // self.key

    @property
    def keys_per_step(self) -> int:
        """Number of key heads per step of the grid: the fewest that fill whole lanes, else all.

        With a ``head_dim`` of 64 it takes two key heads to fill a register's 128 lanes.
        """
        fitting = (n for n in range(1, self.key) if self.key % n == 0)
        return next((n for n in fitting if n * self.head_dim % LANES == 0), self.key)

    @property
    def heads_per_step(self) -> int:
        """Number of query heads per step of the grid."""
        return self.keys_per_step * self.group

    @property
    def steps(self) -> int:
        """Number of steps of the grid that cover all heads."""
        return self.key // self.keys_per_step

    def columns(self, head: int) -> slice:
        """Return the columns of a step's query head in a block of queries."""
        return slice(head * self.head_dim, (head + 1) * self.head_dim)

    def key_columns(self, head: int) -> slice:
        """Return the columns, in a block of keys, of the key head of a step's query head."""
        return self.columns(head // self.group)


class Rows(NamedTuple):
    """The segments of the rows, and which of their blocks the queries are."""

    segment_ids: Int[Array, "batch length"]
    query_blocks: Int[Array, " query_blocks"] | None
    """Numbers of the row's blocks that the queries are; None if they are all of them."""

    def key_ids(self) -> Int[Array, "batch 1 length"]:
        """Return the segment ids of the keys in the rank that a block spec can tile."""
        return self.segment_ids.astype(jnp.int32)[:, None]

    def query_ids(self, tile: int) -> Int[Array, "batch 1 queries"]:
        """Return the segment ids of the queries, which are blocks of ``tile`` tokens."""
        ids = self.key_ids()
        if self.query_blocks is None:
            return ids
        return ids.reshape(len(ids), -1, tile)[:, self.query_blocks].reshape(len(ids), 1, -1)


class Residuals(NamedTuple):
    """Arrays that the forward pass saves for the backward pass.

    The probabilities are not among them: they are recomputed, tile by tile, from the scores and
    ``log_sum``, because storing them takes memory that grows with the square of the length.
    """

    query: Float[Array, "batch queries heads_x_dim"]
    key: Float[Array, "batch length kv_heads_x_dim"]
    value: Float[Array, "batch length kv_heads_x_dim"]
    rows: Rows
    out: Float[Array, "batch queries heads_x_dim"]
    log_sum: Float[Array, "batch steps heads_per_step queries"]
    """Base-2 logarithm of each query's sum of exponentials, float32."""


@dataclass(frozen=True)
class KernelConfig:
    """Static parameters of a kernel call; calls with equal ones are compiled once."""

    heads: Heads
    sizes: BlockSizes
    blocks: int
    """Number of blocks per row."""
    interpret: Any

    @property
    def specs(self) -> "Specs":
        """The block specs of this configuration."""
        return Specs(self.heads, self.sizes.tile, self.blocks)


@dataclass(frozen=True)
class Specs:
    """Block specs on a grid of (steps of heads, tiles), indexed through the table of tiles.

    The table is prefetched into scalar memory, where the index maps can read it before the block
    of an operand is fetched.
    """

    heads: Heads
    tile: int
    blocks: int

    def query(self) -> pl.BlockSpec:
        """Return the spec of arrays of the queries' shape."""
        width = self.heads.heads_per_step * self.heads.head_dim
        return pl.BlockSpec((1, self.tile, width), self._index("query"))

    def key(self) -> pl.BlockSpec:
        """Return the spec of arrays of the keys' shape."""
        width = self.heads.keys_per_step * self.heads.head_dim
        return pl.BlockSpec((1, self.tile, width), self._index("key"))

    def query_ids(self) -> pl.BlockSpec:
        """Return the spec of the queries' segment ids, (batch, 1, queries)."""
        return pl.BlockSpec((1, 1, self.tile), self._index("query", last=True))

    def key_ids(self) -> pl.BlockSpec:
        """Return the spec of the keys' segment ids, (batch, 1, length)."""
        return pl.BlockSpec((1, 1, self.tile), self._index("key", last=True))

    def log_sums(self) -> pl.BlockSpec:
        """Return the spec of arrays (batch, steps, heads per step, queries)."""

        def index(step: Any, t: Any, table: Any, *_: Any) -> tuple:
            tile = unpack(table[t], self.blocks)
            return tile.row, step, 0, tile.query

        return pl.BlockSpec((1, 1, self.heads.heads_per_step, self.tile), index)

    def _index(self, side: str, *, last: bool = False) -> Callable:
        def index(step: Any, t: Any, table: Any, *_: Any) -> tuple:
            tile = unpack(table[t], self.blocks)
            block = getattr(tile, side)
            return (tile.row, 0, block) if last else (tile.row, block, step)

        return index


def dot(a: jax.Array, b: jax.Array, contract: tuple) -> jax.Array:
    """Return the product over axis ``contract[0]`` of ``a`` and ``contract[1]`` of ``b``, float32.

    Operands in bfloat16 are multiplied as they are and added in float32.
    """
    # A TPU rounds float32 operands to bfloat16 unless the highest precision is requested.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def column(row: jax.Array) -> jax.Array:
    """Transpose a row (1, n) to (n, 128), all columns equal.

    The result lies in VMEM with a value in every lane, so that a comparison with a row of lanes
    need not spread one lane over a register each time.
    """
    # Transposed as float32 by bitcast: the ids are only moved, so their bits stay as they are.
    bits = jax.lax.bitcast_convert_type(jnp.broadcast_to(row, (LANES, row.shape[1])), jnp.float32)
    return jax.lax.bitcast_convert_type(bits.T, row.dtype)


def software_pipeline(
    scores: Callable[[int, int], Any], parts: list[tuple[int, int]], ahead: int
) -> Iterator[tuple[tuple[int, int], Any]]:
    """Yield each part with its scores, which are computed ``ahead`` parts earlier.

    The loop is unrolled while tracing. The order in which the instructions are emitted lets the
    compiler's scheduler keep the matrix unit busy while the vector unit computes exponentials.
    """
    pending = [scores(*part) for part in parts[:ahead]]
    for number, part in enumerate(parts):
        pending += [scores(*after) for after in parts[number + ahead :][:1]]
        yield part, pending.pop(0)


def dispatch_by_mask(flags: jax.Array, tile: Callable[[bool, bool], None]) -> None:
    """Run ``tile(crossing, diagonal)`` for the kind of tile that ``flags`` describe.

    Each kind is compiled on its own, so that most tiles, in which every pair is visible, spend no
    instruction on a mask. A tile on the diagonal is always masked by segment too: a segment border
    crosses most of them, and a fourth kind would add code for few tiles.
    """
    crossing, diagonal = flags & CROSSING != 0, flags & DIAGONAL != 0
    pl.when(~crossing & ~diagonal)(functools.partial(tile, False, False))
    pl.when(crossing & ~diagonal)(functools.partial(tile, True, False))
    pl.when(diagonal)(functools.partial(tile, True, True))
