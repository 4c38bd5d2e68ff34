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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PreferenceBatch:
    """Rows of pairs: pair p of a row is segments 2p + 1 (chosen) and 2p + 2 (rejected).

    A segment is a prompt and an answer; ``rows.loss_mask`` is 1 on the answer's targets, those that
    count for its log-probability.
    """

    rows: TokenBatch
    pair_mask: Leaf
    """float32 (batch, pairs): which pairs are there."""
    reference_logprobs: Leaf
    """float32 (batch, 2 pairs): of each segment's answer under the reference model, in nats."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UnpairedBatch:
    """Rows of judged answers: answer a of a row is segment 2a + 1, and 2a + 2 its mismatch.

    The mismatch is the same prompt with the corpus's next answer to another prompt (the last with
    the first), for KTO's estimate of the KL divergence (arXiv 2402.01306, section 4.1).
    """

    rows: TokenBatch
    answer_mask: Leaf
    """float32 (batch, answers): which answers are there."""
    good: Leaf
    """float32 (batch, answers): 1 for a good answer, 0 for a bad one."""
    reference_logprobs: Leaf
    """float32 (batch, 2 answers): of each segment's answer under the reference model, in nats."""


Batch = TokenBatch | PreferenceBatch | UnpairedBatch
