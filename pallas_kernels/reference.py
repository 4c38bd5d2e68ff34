"""Each operation in plain ``jnp``: the meaning that every faster implementation is held to."""

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
    """Causal softmax attention inside each segment, scaled by 1/sqrt(head_dim).

    Query head n attends with key/value head n // (heads / kv_heads). Scores and softmax are
    float32 whatever the operands (float64 for float64 operands). The queries are those of the
    row's ``chunks``, of equal length, side by side; of the whole row where there are none.
    """
    batch, queries, heads, head_dim = query.shape
    length, kv_heads = key.shape[1:3]
    wide = jnp.promote_types(jnp.float32, query.dtype)
    place = jnp.arange(length)
    own, own_ids = place, segment_ids
    if chunks is not None:
        own = place.reshape(-1, queries // chunks.size)[chunks].reshape(-1)
        own_ids = segment_ids[:, own]
    visible = (own[:, None] >= place[None, :])[None] & (
        own_ids[:, :, None] == segment_ids[:, None, :]
    )
    # Added, not selected by: the gradient needs no mask then.
    hidden = jnp.where(visible, 0, -jnp.inf).astype(wide)[:, None, None]
    # Heads first, a group's queries side by side: one plain matrix product for each kv head.
    query = query.reshape(batch, queries, kv_heads, heads // kv_heads, head_dim)
    query = query.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, head_dim)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    scores = jnp.einsum("bkqh,bksh->bkqs", query, key, preferred_element_type=wide)
    by_head = (batch, kv_heads, heads // kv_heads, queries, length)
    scores = (scores.reshape(by_head) * head_dim**-0.5 + hidden).reshape(scores.shape)
    # Divided after the product with the values: head_dim divisions a query, not one a key.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(value.dtype)
    out = jnp.einsum("bkqs,bksh->bkqh", weights, value, preferred_element_type=wide) / total
    out = out.reshape(batch, kv_heads, heads // kv_heads, queries, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, head_dim).astype(query.dtype)
