"""Reference implementation of attention in ``jax.numpy``, with which the kernels must agree."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def attention(
    query: Float[Array, "batch queries heads head_dim"],
    key: Float[Array, "batch length kv_heads head_dim"],
    value: Float[Array, "batch length kv_heads head_dim"],
    segment_ids: Int[Array, "batch length"],
    *,
    chunks: Int[Array, " chunks"] | None = None,
) -> Float[Array, "batch queries heads head_dim"]:
    """Return softmax(Q K^T / sqrt(head_dim)) V, causal within each segment.

    Source: Vaswani et al. 2017, arXiv 1706.03762, equation 1, with grouped key/value heads (Ainslie
    et al. 2023, arXiv 2305.13245). Query head n attends to key/value head n // (heads / kv_heads).
    The result has the shape and dtype of ``query``. Scores and softmax are computed in float64 if
    the operands are float64, and otherwise in float32. If ``chunks`` is None, ``query`` contains
    the queries of the whole row. Otherwise the row is divided into chunks of equal length,
    ``chunks`` contains the indices of some of these chunks, and ``query`` is the concatenation of
    their queries.
    """
    batch, queries, heads, head_dim = query.shape
    length, kv_heads = key.shape[1:3]
    wide = jnp.promote_types(jnp.float32, query.dtype)
    position = jnp.arange(length)
    query_position, query_ids = position, segment_ids
    if chunks is not None:
        query_position = position.reshape(-1, queries // chunks.size)[chunks].reshape(-1)
        query_ids = segment_ids[:, query_position]
    visible = (query_position[:, None] >= position[None, :])[None] & (
        query_ids[:, :, None] == segment_ids[:, None, :]
    )
    # The mask is added to the scores. With ``jnp.where``, the backward pass would need the mask.
    hidden = jnp.where(visible, 0, -jnp.inf).astype(wide)[:, None, None]
    # The queries of a group's heads are concatenated along the length, so that the scores of each
    # key/value head are one matrix product.
    query = query.reshape(batch, queries, kv_heads, heads // kv_heads, head_dim)
    query = query.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, head_dim)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    scores = jnp.einsum("bkqh,bksh->bkqs", query, key, preferred_element_type=wide)
    by_head = (batch, kv_heads, heads // kv_heads, queries, length)
    scores = (scores.reshape(by_head) * head_dim**-0.5 + hidden).reshape(scores.shape)
    # The maximum cancels in the quotient, so it needs no gradient. The division comes after the
    # product with the values, where it costs head_dim divisions per query and not one per key.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(value.dtype)
    out = jnp.einsum("bkqs,bksh->bkqh", weights, value, preferred_element_type=wide) / total
    out = out.reshape(batch, kv_heads, heads // kv_heads, queries, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, head_dim).astype(query.dtype)
