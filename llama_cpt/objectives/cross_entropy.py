"""Output matrix and cross-entropy in chunks of tokens: the whole logits never exist.

The gradient is made in the forward pass, chunk by chunk, while a chunk's logits are at hand: three
matrix products a token and no second softmax, as in the fused linear cross-entropy of Liger Kernel
(arXiv 2410.10989, section 3.2). The loss is linear in its cotangent, so the backward pass scales.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_cpt.parallel.mesh import TOKEN_AXES, partition_spec
from llama_cpt.parallel.vocab_parallel import VocabGroups, make_vocab_groups


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def linear_cross_entropy(
    hidden: Float[Array, "batch length embed"],
    head: Float[Array, "vocab embed"],
    targets: Int[Array, "batch length"],
    weights: Float[Array, "batch length"],
    z_loss: float,
    chunk_tokens: int,
) -> tuple[Float[Array, ""], Float[Array, "batch length"]]:
    """Weighted loss sum and each token's negative log-likelihood, float32, in nats.

    With l = hidden @ head.T and Z = sum exp(l), a token's loss is -log softmax(l)[target] plus
    ``z_loss`` * (log Z)^2 (PaLM, arXiv 2204.02311, section 5). Products take operands in hidden's
    type and add in float32. Gradients flow from the loss sum to ``hidden`` and ``head`` only.
    ``chunk_tokens`` counts the tokens of which a device has logits. Runs under ``jax.set_mesh``.
    """
    kernel = partial(_losses, z_loss=z_loss, chunk_tokens=chunk_tokens)
    return _per_device(kernel, 2)(hidden, head, targets, weights)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def token_nll(
    hidden: Float[Array, "batch length embed"],
    head: Float[Array, "vocab embed"],
    targets: Int[Array, "batch length"],
    chunk_tokens: int,
) -> Float[Array, "batch length"]:
    """Each token's negative log-likelihood in nats.

    Its gradient computes the logits a second time: in a loss of whole answers a token's weight is
    known only when all of them have been scored.
    """
    weights = jnp.ones(targets.shape, jnp.float32)
    return linear_cross_entropy(hidden, head, targets, weights, 0.0, chunk_tokens)[1]


def _forward(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    z_loss: float,
    chunk_tokens: int,
) -> tuple:
    kernel = partial(_losses_and_gradients, z_loss=z_loss, chunk_tokens=chunk_tokens)
    loss, nll, d_hidden, d_head = _per_device(kernel, 4)(hidden, head, targets, weights)
    return (loss, nll), (d_hidden, d_head)


def _backward(z_loss: float, chunk_tokens: int, saved: tuple, cotangents: tuple) -> tuple:
    d_hidden, d_head = saved
    scale = cotangents[0]
    return d_hidden * scale.astype(d_hidden.dtype), d_head * scale, None, None


linear_cross_entropy.defvjp(_forward, _backward)


def _nll_forward(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, chunk_tokens: int
) -> tuple:
    return token_nll(hidden, head, targets, chunk_tokens), (hidden, head, targets)


def _nll_backward(chunk_tokens: int, saved: tuple, cotangent: jax.Array) -> tuple:
    hidden, head, targets = saved
    _, (d_hidden, d_head) = _forward(hidden, head, targets, cotangent, 0.0, chunk_tokens)
    return d_hidden, d_head, None


token_nll.defvjp(_nll_forward, _nll_backward)


def _per_device(kernel: Callable, outputs: int) -> Callable:
    """Run ``kernel`` on each device's rows and share of the vocabulary.

    By hand, because the partitioner would reduce the head's gradient once a chunk: here the share
    is gathered once and its gradient scattered once.
    """
    rows, table = partition_spec("batch", "length"), partition_spec("vocab", "embed")
    embedded = partition_spec("batch", "length", "act_embed")
    return jax.shard_map(
        kernel,
        in_specs=(embedded, table, rows, rows),
        out_specs=(jax.P(), rows, embedded, table)[:outputs],
        check_vma=False,
    )


def _losses(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    z_loss: float,
    chunk_tokens: int,
) -> tuple[jax.Array, jax.Array]:
    near = make_vocab_groups(head.shape[0], targets.size)
    head = near.gather_rows(head, hidden.dtype)

    def chunk(loss: jax.Array, rows: tuple) -> tuple:
        hidden, ids, weights = _gathered(rows, head, near)
        _, log_z, nll = _scores(hidden, head, ids, near)
        return loss + jnp.sum(weights * (nll + z_loss * jnp.square(log_z))), near.local_tokens(nll)

    chunks = _chunks(hidden, targets, weights, chunk_tokens // near.size)
    loss, nll = jax.lax.scan(chunk, jnp.float32(0), chunks)
    return jax.lax.psum(loss, TOKEN_AXES) / near.size, _unchunked(nll, targets.shape)


def _losses_and_gradients(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    z_loss: float,
    chunk_tokens: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    near = make_vocab_groups(head.shape[0], targets.size)
    head = near.gather_rows(head, hidden.dtype)

    def chunk(carry: tuple, rows: tuple) -> tuple:
        loss, d_head = carry
        hidden, ids, weights = _gathered(rows, head, near)
        logits, log_z, nll = _scores(hidden, head, ids, near)
        loss = loss + jnp.sum(weights * (nll + z_loss * jnp.square(log_z)))
        # d loss / d logits = w (softmax (1 + 2 z log Z) - onehot)
        pull = (weights * (1 + 2 * z_loss * log_z))[:, None]
        softmax = jnp.exp(logits - log_z[:, None])
        onehot = jnp.where(_is_target(ids, logits), weights[:, None], 0)
        d_logits = (pull * softmax - onehot).astype(head.dtype)
        products = partial(jnp.einsum, preferred_element_type=jnp.float32)
        d_head = d_head + products("tv,td->vd", d_logits, hidden)
        d_hidden = near.scatter_tokens(products("tv,vd->td", d_logits, head))
        return (loss, d_head), (near.local_tokens(nll), d_hidden.astype(hidden.dtype))

    start = jnp.float32(0), jnp.zeros(head.shape, jnp.float32)
    chunks = _chunks(hidden, targets, weights, chunk_tokens // near.size)
    (loss, d_head), (nll, d_hidden) = jax.lax.scan(chunk, start, chunks)
    # The layers' backward pass waits for the scatter: the gradient of the share would otherwise
    # live on beside their temporaries.
    d_hidden, d_head = jax.lax.optimization_barrier((d_hidden, near.scatter_rows(d_head)))
    return (
        jax.lax.psum(loss, TOKEN_AXES) / near.size,
        _unchunked(nll, targets.shape),
        _unchunked(d_hidden, hidden.shape),
        d_head,
    )


def _gathered(rows: tuple, head: jax.Array, near: VocabGroups) -> tuple:
    """A chunk's (hidden, targets' ids within this device's share, weights), the neighbours' too."""
    hidden, targets, weights = jax.tree.map(near.gather_tokens, rows)
    return hidden, near.local_ids(targets, head.shape[0]), weights


def _scores(hidden: jax.Array, head: jax.Array, ids: jax.Array, near: VocabGroups) -> tuple:
    """(Logits of this device's share of the vocabulary, log Z, nll), float32."""
    logits = jnp.einsum("td,vd->tv", hidden, head, preferred_element_type=jnp.float32)
    top = near.max(jnp.max(logits, axis=-1))
    log_z = top + jnp.log(near.sum(jnp.sum(jnp.exp(logits - top[:, None]), axis=-1)))
    target = near.sum(jnp.sum(jnp.where(_is_target(ids, logits), logits, 0), axis=-1))
    return logits, log_z, log_z - target


def _is_target(ids: jax.Array, logits: jax.Array) -> jax.Array:
    """Where, in this device's share of the vocabulary, each row's target is."""
    return ids[:, None] == jnp.arange(logits.shape[1])[None]


def _chunks(
    hidden: jax.Array, targets: jax.Array, weights: jax.Array, chunk_tokens: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens in equal chunks, the last filled up with tokens of weight 0."""
    tokens = targets.size
    chunk_tokens = min(max(chunk_tokens, 1), tokens)

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(tokens, *x.shape[2:])
        x = jnp.pad(x, [(0, -tokens % chunk_tokens)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, chunk_tokens, *x.shape[1:])

    return split(hidden), split(targets), split(weights)


def _unchunked(chunks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    flat = chunks.reshape(-1, *chunks.shape[2:])
    return flat[: shape[0] * shape[1]].reshape(shape)
