"""Array layouts, block specs and helper functions of the two attention kernels."""

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

# Factor of the scores: exp(x) = 2^(x log2(e)). The kernels compute exponentials with base 2,
# because the hardware has an instruction for them.
LOG2_E = math.log2(math.e)
MASK_VALUE = -0.7 * float(jnp.finfo(jnp.float32).max)
"""The score of a query and a key to which the query does not attend, and the initial value of the
running maximum. The value is finite, because the difference of two infinities would be NaN. The
factor 0.7 keeps the difference of MASK_VALUE and a score from overflowing."""
LANES = 128
"""Number of lanes of a TPU's vector register. The last dimension of a buffer should be a multiple
of this number."""
# Limit of the VMEM that a kernel can use, in bytes. The backward kernel needs the most. Its
# gradients of 8,192 keys and values of width 128 alone take 16 MiB: 8 MiB for the float32 sums and
# 8 MiB for the output blocks, which have two buffers each.
VMEM_BYTES = 64 << 20


@dataclass(frozen=True)
class Heads:
    """The layout of the heads in the kernels' arrays of shape (batch, length, heads x head_dim).

    ``query`` and ``key`` are the numbers of query and key heads. Because heads and head_dim are
    merged into the last dimension, the operands need no transposed copies. A step of the grid
    processes one or more key heads and all query heads that use them. A tile of keys and values is
    therefore fetched once for all of these query heads.
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
        """Number of key heads per step of the grid.

        The result divides the number of key heads. It is the smallest number of heads whose total
        width is a multiple of 128 lanes, such as 2 for a ``head_dim`` of 64. If there is no such
        number, a step processes all key heads.
        """
        fitting = (n for n in range(1, self.key) if self.key % n == 0)
        return next((n for n in fitting if n * self.head_dim % LANES == 0), self.key)

    @property
    def heads_per_step(self) -> int:
        """Number of query heads per step of the grid."""
        return self.keys_per_step * self.group

    @property
    def steps(self) -> int:
        """Number of grid steps per tile. These steps together process all heads."""
        return self.key // self.keys_per_step

    def columns(self, head: int) -> slice:
        """Return the columns of query head ``head`` of a grid step, in a block of queries."""
        return slice(head * self.head_dim, (head + 1) * self.head_dim)

    def key_columns(self, head: int) -> slice:
        """Return the columns of the key head of query head ``head``, in a block of keys."""
        return self.columns(head // self.group)


class Rows(NamedTuple):
    """The segment ids of the rows, and the indices of the blocks for which there are queries."""

    segment_ids: Int[Array, "batch length"]
    query_blocks: Int[Array, " query_blocks"] | None
    """Indices of the blocks of a row for which there are queries; None for all blocks."""

    def key_ids(self) -> Int[Array, "batch 1 length"]:
        """Return the segment ids of the keys, with a dimension of size 1 for the block spec."""
        return self.segment_ids.astype(jnp.int32)[:, None]

    def query_ids(self, tile: int) -> Int[Array, "batch 1 queries"]:
        """Return the segment ids of the queries; ``tile`` is the size of a query block."""
        ids = self.key_ids()
        if self.query_blocks is None:
            return ids
        return ids.reshape(len(ids), -1, tile)[:, self.query_blocks].reshape(len(ids), 1, -1)


class Residuals(NamedTuple):
    """Arrays that the forward pass saves for the backward pass.

    The probabilities are not saved, because their size grows with the square of the length. The
    backward kernel recomputes them, tile by tile, from the scores and ``log_sum``.
    """

    query: Float[Array, "batch queries heads_x_dim"]
    key: Float[Array, "batch length kv_heads_x_dim"]
    value: Float[Array, "batch length kv_heads_x_dim"]
    rows: Rows
    out: Float[Array, "batch queries heads_x_dim"]
    log_sum: Float[Array, "batch steps heads_per_step queries"]
    """Base-2 logarithm of the sum of exponentials for each query and head, float32."""


@dataclass(frozen=True)
class KernelConfig:
    """Static parameters of a kernel call. Calls with equal parameters are compiled once."""

    heads: Heads
    sizes: BlockSizes
    blocks: int
    """Number of key blocks per row."""
    interpret: Any
    """The option ``interpret`` of ``pallas_call``."""

    @property
    def specs(self) -> "Specs":
        """The block specs for this configuration."""
        return Specs(self.heads, self.sizes.tile, self.blocks)


@dataclass(frozen=True)
class Specs:
    """Block specs for a grid of (steps of heads, tiles), with block indices from a table of tiles.

    The table is prefetched into scalar memory, so that the index maps can read it before the blocks
    of the operands are fetched. ``blocks`` is the number of key blocks per row.
    """

    heads: Heads
    tile: int
    blocks: int

    def query(self) -> pl.BlockSpec:
        """Return the block spec of arrays with the shape of the queries."""
        width = self.heads.heads_per_step * self.heads.head_dim
        return pl.BlockSpec((1, self.tile, width), self._index("query"))

    def key(self) -> pl.BlockSpec:
        """Return the block spec of arrays with the shape of the keys."""
        width = self.heads.keys_per_step * self.heads.head_dim
        return pl.BlockSpec((1, self.tile, width), self._index("key"))

    def query_ids(self) -> pl.BlockSpec:
        """Return the block spec of the queries' segment ids, shape (batch, 1, queries)."""
        return pl.BlockSpec((1, 1, self.tile), self._index("query", last=True))

    def key_ids(self) -> pl.BlockSpec:
        """Return the block spec of the keys' segment ids, shape (batch, 1, length)."""
        return pl.BlockSpec((1, 1, self.tile), self._index("key", last=True))

    def log_sums(self) -> pl.BlockSpec:
        """Return the block spec of arrays of shape (batch, steps, heads per step, queries)."""

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
    """Return the float32 matrix product of ``a`` and ``b``.

    The product sums over axis ``contract[0]`` of ``a`` and axis ``contract[1]`` of ``b``, in
    float32. The operands keep their dtypes.
    """
    # By default, a TPU rounds float32 operands to bfloat16.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def column(row: jax.Array) -> jax.Array:
    """Return an array of shape (n, 128) whose columns all equal ``row``, of shape (1, n).

    A comparison of the array with a row of lanes then needs no broadcast of a single lane.
    """
    # The ids are transposed as float32 values with the same bits. The transpose only moves the
    # values, so the ids are unchanged.
    bits = jax.lax.bitcast_convert_type(jnp.broadcast_to(row, (LANES, row.shape[1])), jnp.float32)
    return jax.lax.bitcast_convert_type(bits.T, row.dtype)


def software_pipeline(
    scores: Callable[[int, int], Any], parts: list[tuple[int, int]], ahead: int
) -> Iterator[tuple[tuple[int, int], Any]]:
    """Yield each part and its scores; ``scores`` is called ``ahead`` parts in advance.

    A part is a pair (head, first query), the arguments of ``scores``. The loop is unrolled while
    tracing. Because the scores are emitted early, the compiler can keep the matrix unit busy while
    the vector unit computes the exponentials of an earlier part.
    """
    pending = [scores(*part) for part in parts[:ahead]]
    for number, part in enumerate(parts):
        pending += [scores(*after) for after in parts[number + ahead :][:1]]
        yield part, pending.pop(0)


def dispatch_by_mask(flags: jax.Array, tile: Callable[[bool, bool], None]) -> None:
    """Call ``tile(crossing, diagonal)`` with the arguments that ``flags`` encodes at run time.

    The function emits code for three kinds of tiles, so that a tile in which every query attends to
    every key, the most frequent kind, needs no mask instructions. ``crossing`` is always True for a
    tile on the diagonal. Most of these tiles contain a segment border, so a fourth kind would add
    code that is rarely used.
    """
    crossing, diagonal = flags & CROSSING != 0, flags & DIAGONAL != 0
    pl.when(~crossing & ~diagonal)(functools.partial(tile, False, False))
    pl.when(crossing & ~diagonal)(functools.partial(tile, True, False))
    pl.when(diagonal)(functools.partial(tile, True, True))
