"""Each operation in plain ``jnp``: the meaning that every faster implementation is held to."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def attention(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch length kv_heads head_dim"],
    value: Float[Array, "batch length kv_heads head_dim"],
    segment_ids: Int[Array, "batch length"],
) -> Float[Array, "batch length heads head_dim"]:
    """Causal softmax attention inside each segment, scaled by 1/sqrt(head_dim).

    Query head n attends with key/value head n // (heads / kv_heads). Scores and softmax are
    float32 whatever the operands (float64 for float64 operands).
    """
    batch, length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    wide = jnp.promote_types(jnp.float32, query.dtype)
    place = jnp.arange(length)
    visible = (place[:, None] >= place[None, :])[None] & (
        segment_ids[:, :, None] == segment_ids[:, None, :]
    )
    # Added, not selected by: the gradient needs no mask then.
    hidden = jnp.where(visible, 0, -jnp.inf).astype(wide)[:, None, None]
    # Heads first, a group's queries side by side: one plain matrix product for each kv head.
    query = query.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    query = query.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, head_dim)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    scores = jnp.einsum("bkqh,bksh->bkqs", query, key, preferred_element_type=wide)
    by_head = (batch, kv_heads, heads // kv_heads, length, length)
    scores = (scores.reshape(by_head) * head_dim**-0.5 + hidden).reshape(scores.shape)
    # Divided after the product with the values: head_dim divisions a query, not one a key.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(value.dtype)
    out = jnp.einsum("bkqs,bksh->bkqh", weights, value, preferred_element_type=wide) / total
    out = out.reshape(batch, kv_heads, heads // kv_heads, length, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim).astype(query.dtype)
