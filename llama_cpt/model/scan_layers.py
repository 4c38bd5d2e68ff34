"""All layers one after the other, and what the backward pass finds of them.

Remat ``full`` is by hand, in two loops each way: the second half's gradients are made before the
first half's have room, and its layers' inputs are gone when they do. One loop would hold every
layer's gradient beside every layer's input.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import checkpoint_policies
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_cpt.model.linear import has_adapters

# What the backward pass finds saved, by the name in ``ComputeConfig.remat``.
REMAT_POLICIES = {
    "minimal": checkpoint_policies.save_from_both_policies(
        checkpoint_policies.dots_with_no_batch_dims_saveable,
        checkpoint_policies.save_only_these_names("attention"),
    ),
    "dots": checkpoint_policies.dots_saveable,
    "full": checkpoint_policies.nothing_saveable,
    "offload": checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["layer_input"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}

# Fewer layers are one loop: a second one costs more to compile than it saves.
DEEP = 16

Layer = Callable[[Any, jax.Array, Any], jax.Array]
"""``(context, x, block) -> x``; nothing is differentiated by the context."""


def run_layers(
    layer: Layer, context: Any, x: Float[Array, "batch length embed"], layers: Any, *, remat: str
) -> Float[Array, "batch length embed"]:
    """``x`` after all of ``layers``, whose arrays are stacked; ``remat`` names what is kept."""
    if remat == "full" and not has_adapters(layers):
        return _recomputed(layer, context, x, layers)
    one = partial(layer, context)
    if remat != "none":
        one = jax.checkpoint(one, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(lambda x, block: (one(x, block), None), x, layers)[0]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recomputed(layer: Layer, context: Any, x: jax.Array, layers: Any) -> jax.Array:
    return _forward(layer, context, x, layers)[0]


def _forward(layer: Layer, context: Any, x: jax.Array, layers: Any) -> tuple:
    def one(x: jax.Array, number: jax.Array) -> tuple:
        return layer(context, x, _at(layers, number)), x

    inputs = []
    for numbers in _loops(x, layers):
        x, part = jax.lax.scan(one, x, numbers)
        inputs.append(part)
    return x, (context, inputs, layers)


def _backward(layer: Layer, saved: tuple, d_x: jax.Array) -> tuple:
    context, inputs, layers = saved

    def one(d_x: jax.Array, saved: tuple) -> tuple:
        x, number = saved
        _, pull = jax.vjp(partial(layer, context), x, _at(layers, number))
        return pull(d_x)

    gradients = []
    loops = _loops(inputs[0][0], layers)
    for part, numbers in reversed(list(zip(inputs, loops, strict=True))):
        d_x, gradient = jax.lax.scan(one, d_x, (part, numbers), reverse=True)
        gradients.insert(0, gradient)
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *gradients)
    return None, d_x, joined


_recomputed.defvjp(_forward, _backward)


def _loops(x: jax.Array, layers: Any) -> list[jax.Array]:
    """The numbers of the layers of each loop.

    The peak is least where the share of the gradients that the second loop makes is the share of
    the inputs that it frees: gradients / (gradients + inputs).
    """
    leaves = jax.tree.leaves(layers)
    count, gradients = leaves[0].shape[0], sum(leaf.nbytes for leaf in leaves)
    inputs = count * x.nbytes
    first = round(count * inputs / (gradients + inputs))
    if count < DEEP or not 0 < first < count:
        return [jnp.arange(count)]
    return [jnp.arange(first), jnp.arange(first, count)]


def _at(layers: Any, number: jax.Array) -> Any:
    """One layer's; hung on the loop's number, else all layers' are converted before the loop."""

    def take(leaf: jax.Array) -> jax.Array:
        one = jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False)
        return one + 0.0 * number.astype(one.dtype)

    return jax.tree.map(take, layers)
