"""The scan over the layers, and what it saves for the backward pass.

Remat ``full`` has an explicit backward pass with two loops each way. The gradients of the second
loop's layers are complete before those of the first need memory, and by then the inputs of the
second loop's layers are freed. One loop would hold the gradient of every layer together with the
input of every layer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import checkpoint_policies
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_cpt.model.linear import has_adapters

# What is saved for the backward pass, by the name in ``ComputeConfig.remat``.
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

# With fewer layers there is one loop: a second one costs more to compile than it saves.
DEEP = 16

Layer = Callable[[Any, jax.Array, Any], jax.Array]
"""A function ``(context, x, block) -> x``, which is not differentiated by the context."""


def run_layers(
    layer: Layer, context: Any, x: Float[Array, "batch length embed"], layers: Any, *, remat: str
) -> Float[Array, "batch length embed"]:
    """Apply all of ``layers``, whose arrays are stacked; ``remat`` names what is saved."""
    if remat == "full" and not has_adapters(layers):
        return _recomputed(layer, context, x, layers)
    one_layer = partial(layer, context)
    if remat != "none":
        # Inside a scan the loop itself prevents common-subexpression elimination.
        policy = REMAT_POLICIES[remat]
        one_layer = jax.checkpoint(one_layer, policy=policy, prevent_cse=False)
    return jax.lax.scan(lambda x, block: (one_layer(x, block), None), x, layers)[0]


# Saves each layer's input. The backward pass recomputes a layer from it, and frees it afterwards.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recomputed(layer: Layer, context: Any, x: jax.Array, layers: Any) -> jax.Array:
    return _forward(layer, context, x, layers)[0]


def _forward(layer: Layer, context: Any, x: jax.Array, layers: Any) -> tuple:
    def one_layer(x: jax.Array, number: jax.Array) -> tuple:
        return layer(context, x, _at(layers, number)), x

    inputs = []
    for numbers in _loops(x, layers):
        x, part = jax.lax.scan(one_layer, x, numbers)
        inputs.append(part)
    return x, (context, inputs, layers)


def _backward(layer: Layer, saved: tuple, d_x: jax.Array) -> tuple:
    context, inputs, layers = saved

    def one_layer(d_x: jax.Array, saved: tuple) -> tuple:
        x, number = saved
        _, pull = jax.vjp(partial(layer, context), x, _at(layers, number))
        return pull(d_x)

    gradients = []
    loops = _loops(inputs[0][0], layers)
    for part, numbers in reversed(list(zip(inputs, loops, strict=True))):
        d_x, gradient = jax.lax.scan(one_layer, d_x, (part, numbers), reverse=True)
        gradients.insert(0, gradient)
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *gradients)
    # The context (rotation, segment ids) has no gradient.
    return None, d_x, joined


_recomputed.defvjp(_forward, _backward)


def _loops(x: jax.Array, layers: Any) -> list[jax.Array]:
    """Return the numbers of the layers of each loop.

    The backward pass starts with the second loop, which has a share s of the layers. At its end
    memory holds all inputs and s of the gradients; at the end of the first loop, all gradients and
    1 - s of the inputs. The larger of the two is least if they are equal, that is if
    s = gradients / (gradients + inputs).
    """
    leaves = jax.tree.leaves(layers)
    count, gradients = leaves[0].shape[0], sum(leaf.nbytes for leaf in leaves)
    inputs = count * x.nbytes
    first = round(count * inputs / (gradients + inputs))
    if count < DEEP or not 0 < first < count:
        return [jnp.arange(count)]
    return [jnp.arange(first), jnp.arange(first, count)]


def _at(layers: Any, number: jax.Array) -> Any:
    """Return the parameters of layer ``number``.

    The arrays are made to depend on the loop's counter. Otherwise the compiler moves the conversion
    to the compute type out of the loop and holds converted copies of all layers.
    """

    def take(leaf: jax.Array) -> jax.Array:
        parameter = jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False)
        return parameter + 0.0 * number.astype(parameter.dtype)

    return jax.tree.map(take, layers)
