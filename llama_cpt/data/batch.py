"""Batches of token rows, preference pairs and rated answers, as the objectives read them."""

from dataclasses import dataclass
from typing import Any

import jax

# A jax.Array, a NumPy array, or a placeholder for one while a step is traced or sharded.
Leaf = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenBatch:
    """Rows of tokens; every field except ``row`` has shape (batch, length).

    Attention never crosses the border of a segment, and ``positions`` restart in each segment.
    """

    tokens: Leaf
    """int32: tokens that the model reads."""
    targets: Leaf
    """int32: the token that follows each of ``tokens``."""
    loss_mask: Leaf
    """float32, 0 or 1: 1 for targets that count in the loss."""
    segment_ids: Leaf
    """int32: index of the token's document in the row, from 1; 0 is padding."""
    positions: Leaf
    """int32: position in the segment, from 0."""
    corpus: Leaf
    """int32: index into the run's corpora (``additional`` first, then ``original``)."""
    row: Leaf
    """uint32 (batch, 2): row number in the run as 64 bits, low word first."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PreferenceBatch:
    """Rows of preference pairs: pair p of a row is segments 2p + 1 (chosen) and 2p + 2 (rejected).

    A segment is a prompt and an answer; ``rows.loss_mask`` is 1 on the targets that count in the
    log-probability of the answer.
    """

    rows: TokenBatch
    pair_mask: Leaf
    """float32 (batch, pairs): 1 for a pair, 0 for an unused slot."""
    reference_logprobs: Leaf
    """float32 (batch, 2 pairs): log-probability in nats of each answer, reference model."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UnpairedBatch:
    """Rows of rated answers: answer a of a row is segment 2a + 1, and segment 2a + 2 its mismatch.

    The mismatch is the same prompt with the corpus's next answer to another prompt (for the last
    answer, the first), for KTO's estimate of the KL divergence (arXiv 2402.01306, section 4.1).
    """

    rows: TokenBatch
    answer_mask: Leaf
    """float32 (batch, answers): 1 for an answer, 0 for an unused slot."""
    good: Leaf
    """float32 (batch, answers): 1 for a good answer, 0 for a bad one."""
    reference_logprobs: Leaf
    """float32 (batch, 2 answers): log-probability in nats of each answer, reference model."""


Batch = TokenBatch | PreferenceBatch | UnpairedBatch
