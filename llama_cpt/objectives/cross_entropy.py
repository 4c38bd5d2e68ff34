"""The output projection fused with the cross-entropy, computed in chunks of tokens.

Only the logits of one chunk are in memory at a time. The gradient of a chunk is computed in the
forward pass, when the chunk's logits are available, as in the fused linear cross-entropy of Liger
Kernel (arXiv 2410.10989, section 3.2). This takes three matrix products per token and no second
softmax. The gradient is linear in the cotangent of the loss, so the backward pass only scales the
saved gradients.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_cpt.parallel.mesh import TOKEN_AXES, partition_spec
from llama_cpt.parallel.vocab_parallel import VocabGroups, make_vocab_groups, psum


def _custom_vjp(*nondiff_argnums: int) -> Callable[[Callable[..., Any]], Any]:
    """Return ``jax.custom_vjp`` as a decorator with the argument ``nondiff_argnums``."""
    return lambda function: jax.custom_vjp(function, nondiff_argnums=nondiff_argnums)


# The residuals are the gradients of ``hidden`` and ``head``, and have the size of these operands.
# Automatic differentiation would save the logits, which have the size (tokens, vocabulary).
@_custom_vjp(4, 5)
def linear_cross_entropy(
    hidden: Float[Array, "batch length embed"],
    head: Float[Array, "vocab embed"],
    targets: Int[Array, "batch length"],
    weights: Float[Array, "batch length"],
    z_loss: float,
    chunk_tokens: int,
) -> tuple[Float[Array, ""], Float[Array, "batch length"]]:
    """Return the weighted sum of the losses, and each token's negative log-likelihood.

    Both results are float32 and in nats. With l = hidden @ head.T and Z = sum exp(l), the loss of a
    token is -log softmax(l)[target] plus ``z_loss`` * (log Z)^2 (PaLM, arXiv 2204.02311, section
    5). The negative log-likelihood is the loss without the second term. Matrix products have
    operands in the type of ``hidden`` and accumulate in float32. Only the weighted sum is
    differentiable, with respect to ``hidden`` and ``head``. ``chunk_tokens`` is the number of
    tokens per chunk on each device. Requires a mesh set by ``jax.set_mesh``.
    """
    kernel = partial(_losses, z_loss=z_loss, chunk_tokens=chunk_tokens)
    return _per_device(kernel, 2)(hidden, head, targets, weights)


# The residuals are only the operands. The cotangent of a token is its weight in the gradient, so
# the backward pass computes the loss with these weights, and computes the logits again.
@_custom_vjp(3)
def token_nll(
    hidden: Float[Array, "batch length embed"],
    head: Float[Array, "vocab embed"],
    targets: Int[Array, "batch length"],
    chunk_tokens: int,
) -> Float[Array, "batch length"]:
    """Return each token's negative log-likelihood, float32, in nats.

    The result is differentiable with respect to ``hidden`` and ``head``. Preference losses use this
    function instead of ``linear_cross_entropy``, because a token's weight in these losses depends
    on the log-probability of the whole answer. The backward pass computes the logits a second time.
    ``chunk_tokens`` is the number of tokens per chunk on each device. Requires a mesh set by
    ``jax.set_mesh``.
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
) -> tuple[Any, Any]:
    kernel = partial(_losses_and_gradients, z_loss=z_loss, chunk_tokens=chunk_tokens)
    loss, nll, d_hidden, d_head = _per_device(kernel, 4)(hidden, head, targets, weights)
    return (loss, nll), (d_hidden, d_head)


def _backward(
    z_loss: float, chunk_tokens: int, saved: tuple[Any, ...], cotangents: tuple[Any, ...]
) -> tuple[Any, ...]:
    d_hidden, d_head = saved
    scale = cotangents[0]
    return d_hidden * scale.astype(d_hidden.dtype), d_head * scale, None, None


linear_cross_entropy.defvjp(_forward, _backward)


def _nll_forward(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, chunk_tokens: int
) -> tuple[Any, Any]:
    return token_nll(hidden, head, targets, chunk_tokens), (hidden, head, targets)


def _nll_backward(
    chunk_tokens: int, saved: tuple[Any, ...], cotangent: jax.Array
) -> tuple[Any, ...]:
    hidden, head, targets = saved
    _, (d_hidden, d_head) = _forward(hidden, head, targets, cotangent, 0.0, chunk_tokens)
    return d_hidden, d_head, None


token_nll.defvjp(_nll_forward, _nll_backward)


def _per_device(kernel: Callable[..., Any], outputs: int) -> Callable[..., Any]:
    """Return ``kernel`` mapped over devices, each with its part of the rows and the vocabulary.

    ``outputs`` is the number of outputs of ``kernel``. The sharding is explicit because XLA's
    partitioner would reduce the gradient of ``head`` once per chunk. With ``shard_map``, ``head``
    is gathered once and its gradient is scattered once.
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
    groups = make_vocab_groups(head.shape[0], targets.size)
    head = groups.gather_rows(head, hidden.dtype)

    def chunk(loss: jax.Array, rows: tuple[Any, ...]) -> tuple[Any, Any]:
        hidden, ids, weights = _gathered(rows, head, groups)
        _, log_z, nll = _scores(hidden, head, ids, groups)
        return loss + jnp.sum(weights * (nll + z_loss * jnp.square(log_z))), groups.local_tokens(
            nll
        )

    chunks = _chunks(hidden, targets, weights, chunk_tokens // groups.size)
    loss, nll = jax.lax.scan(chunk, jnp.float32(0), chunks)
    # Every device of a group has added the losses of all tokens of the group.
    return psum(loss, TOKEN_AXES) / groups.size, _unchunked(nll, targets.shape)


def _losses_and_gradients(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    z_loss: float,
    chunk_tokens: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    groups = make_vocab_groups(head.shape[0], targets.size)
    head = groups.gather_rows(head, hidden.dtype)

    def chunk(carry: tuple[Any, ...], rows: tuple[Any, ...]) -> tuple[Any, Any]:
        loss, d_head = carry
        hidden, ids, weights = _gathered(rows, head, groups)
        logits, log_z, nll = _scores(hidden, head, ids, groups)
        loss = loss + jnp.sum(weights * (nll + z_loss * jnp.square(log_z)))
        # The gradient of the logits is w (softmax (1 + 2 z log Z) - onehot). It is computed in
        # float32 and rounded only as an operand of the products below.
        softmax_weight = (weights * (1 + 2 * z_loss * log_z))[:, None]
        softmax = jnp.exp(logits - log_z[:, None])
        onehot = jnp.where(_is_target(ids, logits), weights[:, None], 0)
        d_logits = (softmax_weight * softmax - onehot).astype(head.dtype)
        products = partial(jnp.einsum, preferred_element_type=jnp.float32)
        d_head = d_head + products("tv,td->vd", d_logits, hidden)
        d_hidden = groups.scatter_tokens(products("tv,vd->td", d_logits, head))
        return (loss, d_head), (groups.local_tokens(nll), d_hidden.astype(hidden.dtype))

    # The gradient of the head is a sum over all tokens, so it accumulates in float32.
    start = jnp.float32(0), jnp.zeros(head.shape, jnp.float32)
    chunks = _chunks(hidden, targets, weights, chunk_tokens // groups.size)
    (loss, d_head), (nll, d_hidden) = jax.lax.scan(chunk, start, chunks)
    # The barrier makes the layers' backward pass wait for the scatter. Without the barrier, the
    # unscattered gradient of the head would stay in memory during that backward pass.
    d_hidden, d_head = jax.lax.optimization_barrier((d_hidden, groups.scatter_rows(d_head)))
    return (
        psum(loss, TOKEN_AXES) / groups.size,
        _unchunked(nll, targets.shape),
        _unchunked(d_hidden, hidden.shape),
        d_head,
    )


def _gathered(
    rows: tuple[Any, ...], head: jax.Array, groups: VocabGroups
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the hidden states, target ids and weights of all tokens in this device's group.

    A group is a set of devices over which the vocabulary is sharded. The ids are indices into this
    device's part of the vocabulary.
    """
    hidden, targets, weights = jax.tree.map(groups.gather_tokens, rows)
    return hidden, groups.local_ids(targets, head.shape[0]), weights


def _scores(
    hidden: jax.Array, head: jax.Array, ids: jax.Array, groups: VocabGroups
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the logits of this device's part of the vocabulary, log Z and NLL, all in float32.

    The logits have shape (tokens, part of the vocabulary). Log Z and NLL have shape (tokens,) and
    cover the whole vocabulary.
    """
    logits = jnp.einsum("td,vd->tv", hidden, head, preferred_element_type=jnp.float32)
    # The maximum over the whole vocabulary is subtracted so that no exponential overflows.
    top = groups.max(jnp.max(logits, axis=-1))
    log_z = top + jnp.log(groups.sum(jnp.sum(jnp.exp(logits - top[:, None]), axis=-1)))
    target = groups.sum(jnp.sum(jnp.where(_is_target(ids, logits), logits, 0), axis=-1))
    return logits, log_z, log_z - target


def _is_target(ids: jax.Array, logits: jax.Array) -> jax.Array:
    """Return a boolean mask of the targets, with the shape of ``logits``."""
    return ids[:, None] == jnp.arange(logits.shape[1])[None]


def _chunks(
    hidden: jax.Array, targets: jax.Array, weights: jax.Array, chunk_tokens: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return ``hidden``, ``targets`` and ``weights`` reshaped to (chunks, chunk_tokens, ...).

    The last chunk is padded with tokens of weight 0.
    """
    tokens = targets.size
    chunk_tokens = min(max(chunk_tokens, 1), tokens)

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(tokens, *x.shape[2:])
        x = jnp.pad(x, [(0, -tokens % chunk_tokens)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, chunk_tokens, *x.shape[1:])

    return split(hidden), split(targets), split(weights)


def _unchunked(chunks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Undo ``_chunks`` for one array: drop the padding and reshape the array to ``shape``."""
    flat = chunks.reshape(-1, *chunks.shape[2:])
    return flat[: shape[0] * shape[1]].reshape(shape)
