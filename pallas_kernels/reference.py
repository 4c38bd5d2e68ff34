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
    score_dtype = jnp.promote_types(jnp.float32, query.dtype)
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=score_dtype)
    place = jnp.arange(length)
    visible = (place[:, None] >= place[None, :])[None] & (
        segment_ids[:, :, None] == segment_ids[:, None, :]
    )
    scores = jnp.where(visible[:, None, None], scores * head_dim**-0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, value)
    return out.reshape(batch, length, heads, head_dim)
