"""Log-probabilities of tokens in rows that share a prefix and that branch.

The options of a question are branches of one row: each sees the question, none another. What comes
before all questions (instructions, worked examples) is read once, into a cache that every row sees.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from llama_cpt.data.batch import Leaf, TokenBatch
from llama_cpt.generation.decoder import Decoder, Layer, compute_logits, prefill, run_decoder_layers
from llama_cpt.model.attention import attend
from llama_cpt.objectives.cross_entropy import token_nll
from llama_cpt.parallel.mesh import constrain

CHUNK = 64
"""Scored tokens whose logits exist at a time."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prefix:
    """Keys and values of tokens that come before every row."""

    layers: tuple[Layer, ...]
    """Each (kv_heads, columns, head_dim)."""
    length: Leaf
    """int32: how many of the columns are tokens."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OptionTokens:
    """Rows behind a prefix, and which of their tokens predict what."""

    tokens: Leaf
    """int32 (batch, length), padded on the right."""
    positions: Leaf
    """int32 (batch, length), the prefix counted."""
    options: Leaf
    """int32 (batch, length): 0 is seen by all that follows it, another by its own kind only."""
    target_indices: Leaf
    """int32 (batch * length,): tokens that predict, rows laid end to end."""
    targets: Leaf
    """int32 (batch * length,): what each of ``places`` predicts."""
    count: Leaf
    """int32: how many of ``places`` there are."""


@jax.jit
def read_prefix(decoder: Decoder, tokens: Int[Array, "batch columns"], length: Leaf) -> Prefix:
    """The prefix of ``length`` tokens in every row of ``tokens``, padded on the right."""
    lengths = jnp.broadcast_to(length, tokens.shape[:1])
    _, cache = prefill(decoder, tokens, lengths, columns=tokens.shape[1])
    return Prefix(tuple((keys[0], values[0]) for keys, values in cache.layers), length)


def empty_prefix(decoder: Decoder) -> Prefix:
    """Of no columns."""
    config = decoder.ends.config
    shape, dtype = (config.num_kv_heads, 0, config.head_dim), decoder.ends.compute_dtype
    # NumPy's are on no device yet: they go onto the decoder's mesh, whatever it is.
    nothing = np.zeros(shape, jnp.dtype(dtype))
    return Prefix(((nothing, nothing),) * config.num_layers, np.int32(0))


@jax.jit
def score_options(
    decoder: Decoder, prefix: Prefix, rows: OptionTokens
) -> tuple[Float[Array, " places"], Bool[Array, " places"]]:
    """Log-probability of each target in nats, float32, and whether it is the likeliest token.

    Beyond ``rows.count`` both are zero.
    """
    place = jnp.arange(rows.tokens.shape[1])
    mine, theirs = rows.options[:, :, None], rows.options[:, None, :]
    visible = (place[:, None] >= place[None])[None] & ((theirs == 0) | (theirs == mine))
    before = jnp.arange(prefix.layers[0][0].shape[1]) < prefix.length

    def attention_of(layer: Layer) -> partial:
        return partial(_attend, layer=layer, before=before, visible=visible)

    attentions = [attention_of(layer) for layer in prefix.layers]
    hidden, _ = run_decoder_layers(decoder, rows.tokens, rows.positions, attentions)
    return _scores(decoder, hidden.reshape(-1, hidden.shape[-1]), rows)


@partial(jax.jit, static_argnames="chunk_tokens")
def score_segments(
    decoder: Decoder, batch: TokenBatch, *, chunk_tokens: int
) -> Float[Array, "batch length"]:
    """The negative log-likelihood of every target in nats, each segment apart from the others."""

    def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple:
        ends = decoder.ends
        out = attend(query, key, value, batch.segment_ids, implementation=ends.attention)
        return out, None

    attentions = [attention] * len(decoder.layers)
    hidden, _ = run_decoder_layers(decoder, batch.tokens, batch.positions, attentions)
    return constrain(token_nll(hidden, decoder.ends.head, batch.targets, chunk_tokens))


def _attend(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch length kv_heads head_dim"],
    value: Float[Array, "batch length kv_heads head_dim"],
    *,
    layer: Layer,
    before: Bool[Array, " columns"],
    visible: Bool[Array, "batch length length"],
) -> tuple[Float[Array, "batch length heads head_dim"], None]:
    """To the prefix's columns and to the row's own; ``pallas_kernels.reference`` otherwise."""
    keys, values = layer
    batch, length, heads, head_dim = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, head_dim).transpose(0, 2, 3, 1, 4)
    wide = {"preferred_element_type": jnp.float32}
    # The prefix has no batch: its keys are not copied for every row.
    there = jnp.einsum("bkgth,ksh->bkgts", grouped, keys, **wide)
    here = jnp.einsum("bkgth,bskh->bkgts", grouped, key, **wide)
    scale, unseen = head_dim**-0.5, -jnp.inf
    there = jnp.where(before[None, None, None, None], there * scale, unseen)
    here = jnp.where(visible[:, None, None], here * scale, unseen)
    weights = jax.nn.softmax(jnp.concatenate([there, here], -1), axis=-1).astype(value.dtype)
    columns = keys.shape[1]
    out = jnp.einsum("bkgts,ksh->btkgh", weights[..., :columns], values, **wide)
    out = out + jnp.einsum("bkgts,bskh->btkgh", weights[..., columns:], value, **wide)
    return out.reshape(batch, length, heads, head_dim).astype(query.dtype), None


def _scores(
    decoder: Decoder, hidden: Float[Array, "tokens embed"], rows: OptionTokens
) -> tuple[jax.Array, jax.Array]:
    """Chunk by chunk, as far as there are places: the logits of all tokens never exist."""
    total = rows.target_indices.shape[0]
    chunk = min(CHUNK, total)

    def one(number: jax.Array, carried: tuple) -> tuple:
        # The last chunk reaches back where the chunks do not divide the total.
        start = jnp.minimum(number * chunk, total - chunk)
        place = jax.lax.dynamic_slice(rows.target_indices, (start,), (chunk,))
        target = jax.lax.dynamic_slice(rows.targets, (start,), (chunk,))
        logits = compute_logits(decoder, hidden[place])
        found = jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
        logprob = found - jax.nn.logsumexp(logits, axis=-1)
        new = logprob, jnp.argmax(logits, axis=-1) == target
        return tuple(
            jax.lax.dynamic_update_slice(old, part, (start,))
            for old, part in zip(carried, new, strict=True)
        )

    empty = jnp.zeros(total, jnp.float32), jnp.zeros(total, bool)
    chunks = (rows.count + chunk - 1) // chunk
    # Replicated: every process reads all of it.
    return tuple(constrain(x, None) for x in jax.lax.fori_loop(0, chunks, one, empty))
