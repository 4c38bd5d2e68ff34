"""The arrays of a peak told apart: gradients, what the backward pass finds saved, the rest.

By type and shape, for the compiler keeps no word of what an array is for. Gradients are float32 and
shaped as the parameters' parts on a device; what is saved is carried by a loop over layers, with
numbers of each layer for each token. A loop may go over some of the layers only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
import itertools
import operator
from typing import Any

import jax

from llama_cpt.planning.buffers import Buffer, Peak


@dataclass(frozen=True)
class PeakBreakdown:
    """Bytes of one device."""

    gradients: int
    saved: int
    """Layers' inputs, and what else the remat policy keeps."""
    others: int
    """Gathered weights, logits, activations of one layer."""


def break_down_peak(peak: Peak, trained: Any, *, layers: int, tokens: int) -> PeakBreakdown:
    """Of a step that trains the abstract ``trained`` on ``tokens`` of a device at a time."""
    leaves = jax.tree.leaves(trained)
    parts = {_without_ones(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves}
    found = {"gradients": 0, "saved": 0, "others": 0}
    for one in peak.buffers:
        found[_part(one, parts, layers, tokens)] += one.bytes
    return PeakBreakdown(**found)


def _part(one: Buffer, parts: Iterable[tuple[int, ...]], layers: int, tokens: int) -> str:
    dims = _without_ones(one.shape.dims)
    stacked = one.carried and bool(dims) and dims[0] <= layers
    for whole in parts:
        if dims == whole or (stacked and whole[0] == layers and dims[1:] == whole[1:]):
            return "gradients" if one.shape.dtype == "f32" else "others"
    rows = itertools.accumulate(dims[1:], operator.mul) if stacked else ()
    return "saved" if tokens in rows else "others"


def _without_ones(dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in dims if size > 1)
