"""Log-probabilities of the options of a question, with shared prefixes computed once.

The options of a question are branches of one row: each attends to the question, but not to other
options. The text before all questions (instructions, worked examples) is read once into a cache
that every row attends to.
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
"""Number of scored tokens whose logits are in memory at a time."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prefix:
    """Keys and values of the tokens before every row."""

    layers: tuple[Layer, ...]
    """Keys and values of each layer, each (kv_heads, columns, head_dim)."""
    length: Leaf
    """int32: number of columns that are tokens; the others are padding."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OptionTokens:
    """Rows after a prefix, and the predictions to score in them."""

    tokens: Leaf
    """int32 (batch, length), padded on the right."""
    positions: Leaf
    """int32 (batch, length), counted from the start of the prefix."""
    options: Leaf
    """int32 (batch, length): 0 is visible to all later tokens, others to their option."""
    target_indices: Leaf
    """int32 (batch * length,): indices of the tokens that predict, in the flattened rows."""
    targets: Leaf
    """int32 (batch * length,): the token to predict at each of ``target_indices``."""
    count: Leaf
    """int32: number of ``target_indices`` in use."""


@jax.jit
def read_prefix(decoder: Decoder, tokens: Int[Array, "batch columns"], length: Leaf) -> Prefix:
    """Return the prefix of ``length`` tokens in every row of ``tokens``, padded on the right."""
    lengths = jnp.broadcast_to(length, tokens.shape[:1])
    _, cache = prefill(decoder, tokens, lengths, columns=tokens.shape[1])
    return Prefix(tuple((keys[0], values[0]) for keys, values in cache.layers), length)


def empty_prefix(decoder: Decoder) -> Prefix:
    """Return a prefix without columns."""
    config = decoder.ends.config
    shape, dtype = (config.num_kv_heads, 0, config.head_dim), decoder.ends.compute_dtype
    # NumPy arrays are on no device yet, so they can go to the decoder's mesh, whatever it is.
    empty = np.zeros(shape, jnp.dtype(dtype))
    return Prefix(((empty, empty),) * config.num_layers, np.int32(0))


@jax.jit
def score_options(
    decoder: Decoder, prefix: Prefix, rows: OptionTokens
) -> tuple[Float[Array, " places"], Bool[Array, " places"]]:
    """Return the log-probability of each target in nats, and whether it is the likeliest token.

    Both are zero beyond ``rows.count``.
    """
    index = jnp.arange(rows.tokens.shape[1])
    mine, theirs = rows.options[:, :, None], rows.options[:, None, :]
    visible = (index[:, None] >= index[None])[None] & ((theirs == 0) | (theirs == mine))
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
    """Return the negative log-likelihood of every target in nats; segments do not interact."""

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
    """Attend to the prefix and to the row's visible tokens, as in ``pallas_kernels.reference``."""
    keys, values = layer
    batch, length, heads, head_dim = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, head_dim).transpose(0, 2, 3, 1, 4)
    wide = {"preferred_element_type": jnp.float32}
    # The prefix has no batch dimension, so that its keys are not copied for every row.
    prefix_scores = jnp.einsum("bkgth,ksh->bkgts", grouped, keys, **wide)
    row_scores = jnp.einsum("bkgth,bskh->bkgts", grouped, key, **wide)
    scale, masked = head_dim**-0.5, -jnp.inf
    prefix_scores = jnp.where(before[None, None, None, None], prefix_scores * scale, masked)
    row_scores = jnp.where(visible[:, None, None], row_scores * scale, masked)
    # One softmax over both parts, as if the prefix were the start of the row.
    scores = jnp.concatenate([prefix_scores, row_scores], -1)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    columns = keys.shape[1]
    out = jnp.einsum("bkgts,ksh->btkgh", weights[..., :columns], values, **wide)
    out = out + jnp.einsum("bkgts,bskh->btkgh", weights[..., columns:], value, **wide)
    return out.reshape(batch, length, heads, head_dim).astype(query.dtype), None


def _scores(
    decoder: Decoder, hidden: Float[Array, "tokens embed"], rows: OptionTokens
) -> tuple[jax.Array, jax.Array]:
    """Score the targets chunk by chunk, so that the logits of all tokens are never in memory."""
    total = rows.target_indices.shape[0]
    chunk = min(CHUNK, total)

    def one(number: jax.Array, carried: tuple) -> tuple:
        # The last chunk overlaps the one before if the chunk size does not divide the total.
        start = jnp.minimum(number * chunk, total - chunk)
        indices = jax.lax.dynamic_slice(rows.target_indices, (start,), (chunk,))
        target = jax.lax.dynamic_slice(rows.targets, (start,), (chunk,))
        logits = compute_logits(decoder, hidden[indices])
        found = jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
        logprob = found - jax.nn.logsumexp(logits, axis=-1)
        new = logprob, jnp.argmax(logits, axis=-1) == target
        return tuple(
            jax.lax.dynamic_update_slice(old, part, (start,))
            for old, part in zip(carried, new, strict=True)
        )

    empty = jnp.zeros(total, jnp.float32), jnp.zeros(total, bool)
    chunks = (rows.count + chunk - 1) // chunk
    # Replicated, because every process reads the whole array.
    return tuple(constrain(x, None) for x in jax.lax.fori_loop(0, chunks, one, empty))
