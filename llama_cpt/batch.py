"""The contract between data and objectives."""

from dataclasses import dataclass
from typing import Any

import jax

# A jax.Array, a NumPy array, or what stands for one while a step is traced or placed.
Leaf = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenBatch:
    """Rows of tokens: each field (batch, length) but ``row``.

    Attention never crosses a segment and ``positions`` restart in each.
    """

    tokens: Leaf
    """int32: what the model reads."""
    targets: Leaf
    """int32: the token after each of ``tokens``."""
    loss_mask: Leaf
    """float32, 0 or 1: which targets are learnt."""
    segment_ids: Leaf
    """int32: which document of the row a token belongs to, from 1; 0 is padding."""
    positions: Leaf
    """int32: place in its segment, from 0."""
    corpus: Leaf
    """int32: index into the run's corpora (``additional`` first, then ``original``)."""
    row: Leaf
    """uint32 (batch, 2): the run's row number, low word first."""
