"""Batch types that the objectives read: token rows, preference pairs and rated answers."""

from dataclasses import dataclass
from typing import Any

import jax

# A jax.Array, a NumPy array, or an object that replaces an array in a pytree, for example a tracer
# or a sharding.
Leaf = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenBatch:
    """Rows of tokens; every field except ``row`` has shape (batch, length).

    A row consists of segments, for example one segment per document. Tokens attend only to tokens
    of the same segment, and ``positions`` restart at 0 in each segment.
    """

    tokens: Leaf
    """int32: input tokens of the model."""
    targets: Leaf
    """int32: the token that follows each input token."""
    loss_mask: Leaf
    """float32: 1 if the target counts in the loss, else 0."""
    segment_ids: Leaf
    """int32: index of the token's segment within the row, counted from 1; 0 marks padding."""
    positions: Leaf
    """int32: position of the token within its segment, counted from 0."""
    corpus: Leaf
    """int32: index of the corpus; ``data.additional`` comes first, then ``data.original``."""
    row: Leaf
    """uint32 (batch, 2): index of the row in the run as a 64-bit integer, low word first."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PreferenceBatch:
    """Rows of preference pairs; pair p = 0, 1, ... of a row has segments 2p + 1 and 2p + 2.

    Segment 2p + 1 is the prompt with the chosen answer, and segment 2p + 2 is the prompt with the
    rejected answer. ``rows.loss_mask`` is 1 for targets that count in the log-probability of the
    answer.
    """

    rows: TokenBatch
    pair_mask: Leaf
    """float32 (batch, pairs): 1 for a pair, 0 for padding."""
    reference_logprobs: Leaf
    """float32 (batch, 2 * pairs): log-probability of each answer under the reference model, in
    nats."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UnpairedBatch:
    """Rows of rated answers; answer a = 0, 1, ... of a row has segments 2a + 1 and 2a + 2.

    Segment 2a + 1 is the prompt with the answer. Segment 2a + 2 is a mismatched completion: the
    prompt with the next answer in the corpus to a different prompt. At the end of the corpus, the
    next answer is taken from the start. KTO estimates the KL divergence from the mismatched
    completions (arXiv 2402.01306, section 4.1).
    """

    rows: TokenBatch
    answer_mask: Leaf
    """float32 (batch, answers): 1 for an answer, 0 for padding."""
    good: Leaf
    """float32 (batch, answers): 1 if the answer is rated good, 0 if it is rated bad."""
    reference_logprobs: Leaf
    """float32 (batch, 2 * answers): log-probability of each answer or mismatched completion under
    the reference model, in nats."""


Batch = TokenBatch | PreferenceBatch | UnpairedBatch
