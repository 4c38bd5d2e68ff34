"""The bytes that a Pallas call moves between HBM and VMEM, counted by its grid and index maps."""

from collections.abc import Callable
from dataclasses import dataclass
import math
from unittest import mock

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np

# The pipeline holds a block twice: one copy is computed on, the other is in flight.
BUFFERS = 2


@dataclass(frozen=True)
class Call:
    """The bytes of one call: read from HBM, written to HBM, and held in VMEM at a time."""

    name: str
    read: int
    written: int
    vmem: int


def recorded(function: Callable, *operands) -> list[Call]:
    """Return the Pallas calls of ``function(*operands)``; none is computed, the results are zeros.

    ``function`` runs operation by operation, so that tables prefetched to scalar memory have
    their values, and the index maps return the blocks that they return on a TPU.
    """
    calls = []

    def record(kernel, *, out_shape, grid_spec, name="", **_):
        def call(*operands):
            results = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), out_shape)
            calls.append(_moved(name, grid_spec, operands, results))
            return results

        return call

    with mock.patch.object(pl, "pallas_call", record), jax.disable_jit():
        function(*operands)
    return calls


def _moved(name: str, grid_spec, operands, results) -> Call:
    count = grid_spec.num_scalar_prefetch
    scalars = operands[:count]
    grid = [int(extent) for extent in grid_spec.grid]
    # The last dimension runs fastest.
    steps = [jnp.asarray(n, jnp.int32) for n in np.unravel_index(np.arange(math.prod(grid)), grid)]
    inputs = _blocked(grid_spec.in_specs, operands[count:])
    outputs = _blocked(grid_spec.out_specs, results)
    held = sum(_buffers(spec) * _bytes(spec, array) for spec, array in inputs + outputs)
    scratch = (math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in grid_spec.scratch_shapes)
    return Call(
        name,
        read=sum(x.nbytes for x in scalars if x is not None)
        + sum(_visits(spec, steps, scalars) * _bytes(spec, x) for spec, x in inputs),
        written=sum(_visits(spec, steps, scalars) * _bytes(spec, x) for spec, x in outputs),
        vmem=held + sum(scratch),
    )


def _blocked(specs, arrays) -> list[tuple]:
    """Return block spec and array of every operand that is not None."""
    flat = (jax.tree.leaves(tree, is_leaf=lambda x: x is None) for tree in (specs, arrays))
    pairs = zip(*flat, strict=True)
    return [(spec, array) for spec, array in pairs if spec is not None and array is not None]


def _bytes(spec: pl.BlockSpec, array) -> int:
    dims = spec.block_shape or array.shape
    return math.prod(n for n in dims if isinstance(n, int)) * array.dtype.itemsize


def _buffers(spec: pl.BlockSpec) -> int:
    return spec.pipeline_mode.buffer_count if spec.pipeline_mode else BUFFERS


def _visits(spec: pl.BlockSpec, steps, scalars) -> int:
    """Return how often the block changes: a block that stays the same is not moved again."""

    def index(*step):
        return tuple(jnp.asarray(n, jnp.int32) for n in spec.index_map(*step, *scalars))

    places = np.stack([np.asarray(n) for n in jax.vmap(index)(*steps)])
    return 1 + int((np.diff(places, axis=1) != 0).any(0).sum())
