"""Bytes that a Pallas call moves between HBM and VMEM, computed from its grid and index maps."""

from collections.abc import Callable
from dataclasses import dataclass
import math
from unittest import mock

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np

# Blocks are double-buffered: the kernel computes on one buffer while the other is transferred.
BUFFERS = 2


@dataclass(frozen=True)
class Call:
    """One Pallas call: the bytes read from HBM, the bytes written to HBM and the bytes of VMEM."""

    name: str
    read: int
    written: int
    vmem: int


def recorded(function: Callable, *operands) -> list[Call]:
    """Return the Pallas calls that ``function(*operands)`` makes.

    The calls are not executed, and their results are zeros. ``function`` runs without ``jit``, so
    the tables in scalar memory have values, and index maps return the same blocks as on a TPU.
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
    # The last dimension of the grid varies fastest.
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
    """Return a pair (block spec, array) for each operand that is not None."""
    flat = (jax.tree.leaves(tree, is_leaf=lambda x: x is None) for tree in (specs, arrays))
    pairs = zip(*flat, strict=True)
    return [(spec, array) for spec, array in pairs if spec is not None and array is not None]


def _bytes(spec: pl.BlockSpec, array) -> int:
    dims = spec.block_shape or array.shape
    return math.prod(n for n in dims if isinstance(n, int)) * array.dtype.itemsize


def _buffers(spec: pl.BlockSpec) -> int:
    return spec.pipeline_mode.buffer_count if spec.pipeline_mode else BUFFERS


def _visits(spec: pl.BlockSpec, steps, scalars) -> int:
    """Return the number of transfers of a block.

    A block is transferred in the first grid step and whenever its index changes.
    """
    index_map = spec.index_map
    assert index_map is not None

    def index(*step):
        return tuple(jnp.asarray(n, jnp.int32) for n in index_map(*step, *scalars))

    indices = np.stack([np.asarray(n) for n in jax.vmap(index)(*steps)])
    return 1 + int((np.diff(indices, axis=1) != 0).any(0).sum())
