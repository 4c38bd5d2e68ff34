"""Log-probabilities of answer options. The common beginning of all questions is processed once.

A row holds a question and its answer options. Each option attends to the question and to itself,
but not to the remaining options. The common beginning of all questions, such as instructions and
few-shot examples, is not part of the rows. The keys and values of this text are computed once and
are called the prefix. All rows attend to the prefix.
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
from llama_cpt.model.llama import Attention
from llama_cpt.objectives.cross_entropy import token_nll
from llama_cpt.parallel.mesh import constrain

CHUNK = 64
"""Number of targets whose logits are in memory at a time."""


Scores = tuple[jax.Array, jax.Array]
"""The log-probability of each target, and whether the target is the most likely token."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prefix:
    """The keys and values of the common beginning of all questions."""

    layers: tuple[Layer, ...]
    """The keys and the values of each layer, each of shape (kv_heads, columns, head_dim)."""
    length: Leaf
    """int32 scalar: the number of columns that hold tokens. The remaining columns are padding."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OptionTokens:
    """The tokens of each row after the prefix, and the targets to score."""

    tokens: Leaf
    """int32 (batch, length): the token ids, padded on the right."""
    positions: Leaf
    """int32 (batch, length): the token positions, counted from the start of the prefix."""
    options: Leaf
    """int32 (batch, length): the index of the option to which a token belongs, counted from 1.

    The value is 0 for tokens of the question and -1 for padding. All later tokens of the row attend
    to the question. The tokens of an option are visible only to tokens of the same option.
    """
    target_indices: Leaf
    """int32 (batch * length,): for each target, the index of the token that predicts the target.

    The index counts the tokens of the flattened rows.
    """
    targets: Leaf
    """int32 (batch * length,): the token to predict at each of ``target_indices``."""
    count: Leaf
    """int32 scalar: the number of entries of ``target_indices`` that are in use."""


@jax.jit
def read_prefix(decoder: Decoder, tokens: Int[Array, "batch columns"], length: Leaf) -> Prefix:
    """Return the prefix with the keys and values of the first ``length`` tokens.

    All rows of ``tokens`` are equal and padded on the right.
    """
    lengths = jnp.broadcast_to(length, tokens.shape[:1])
    _, cache = prefill(decoder, tokens, lengths, columns=tokens.shape[1])
    return Prefix(tuple((keys[0], values[0]) for keys, values in cache.layers), length)


def empty_prefix(decoder: Decoder) -> Prefix:
    """Return a prefix with zero columns, for questions without a common beginning."""
    config = decoder.ends.config
    shape, dtype = (config.num_kv_heads, 0, config.head_dim), decoder.ends.compute_dtype
    # NumPy arrays are not committed to a device, so they can be used with any mesh.
    empty = np.zeros(shape, jnp.dtype(dtype))
    return Prefix(((empty, empty),) * config.num_layers, np.int32(0))


@jax.jit
def score_options(
    decoder: Decoder, prefix: Prefix, rows: OptionTokens
) -> tuple[Float[Array, " targets"], Bool[Array, " targets"]]:
    """Score all targets in ``rows``.

    Returns the log-probability of each target in nats, and whether the target is the most likely
    token. Entries after the first ``rows.count`` are 0 and False.
    """
    index = jnp.arange(rows.tokens.shape[1])
    mine, theirs = rows.options[:, :, None], rows.options[:, None, :]
    visible = (index[:, None] >= index[None])[None] & ((theirs == 0) | (theirs == mine))
    before = jnp.arange(prefix.layers[0][0].shape[1]) < prefix.length

    def attention_of(layer: Layer) -> Attention:
        return partial(_attend, layer=layer, before=before, visible=visible)

    attentions = [attention_of(layer) for layer in prefix.layers]
    hidden, _ = run_decoder_layers(decoder, rows.tokens, rows.positions, attentions)
    return _scores(decoder, hidden.reshape(-1, hidden.shape[-1]), rows)


@partial(jax.jit, static_argnames="chunk_tokens")
def score_segments(
    decoder: Decoder, batch: TokenBatch, *, chunk_tokens: int
) -> Float[Array, "batch length"]:
    """Return the negative log-likelihood of every target in nats.

    Attention does not cross segments. The logits of at most ``chunk_tokens`` tokens are in memory
    at a time.
    """

    def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, None]:
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
    """Return the attention output over the prefix and the row's visible tokens, and None.

    None takes the place of a cache entry, because the tokens are not cached. The arithmetic is the
    same as in ``pallas_kernels.reference``.
    """
    keys, values = layer
    batch, length, heads, head_dim = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, head_dim).transpose(0, 2, 3, 1, 4)
    wide = {"preferred_element_type": jnp.float32}
    # The prefix has no batch dimension, so its keys are not copied for every row.
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


def _scores(decoder: Decoder, hidden: Float[Array, "tokens embed"], rows: OptionTokens) -> Scores:
    """Return the scores of ``score_options``, computed in chunks to limit the memory for logits."""
    total = rows.target_indices.shape[0]
    chunk = min(CHUNK, total)

    def one(number: jax.Array, carried: Scores) -> Scores:
        # The last chunk overlaps the previous chunk if the chunk size does not divide the total.
        start = jnp.minimum(number * chunk, total - chunk)
        indices = jax.lax.dynamic_slice(rows.target_indices, (start,), (chunk,))
        target = jax.lax.dynamic_slice(rows.targets, (start,), (chunk,))
        logits = compute_logits(decoder, hidden[indices])
        found = jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
        logprob = found - jax.nn.logsumexp(logits, axis=-1)
        best = jnp.argmax(logits, axis=-1) == target
        return (
            jax.lax.dynamic_update_slice(carried[0], logprob, (start,)),
            jax.lax.dynamic_update_slice(carried[1], best, (start,)),
        )

    empty = jnp.zeros(total, jnp.float32), jnp.zeros(total, bool)
    chunks = (rows.count + chunk - 1) // chunk
    # Both outputs are replicated, because every process reads the whole arrays.
    logprobs, best = jax.lax.fori_loop(0, chunks, one, empty)
    return constrain(logprobs, None), constrain(best, None)
