"""The scan over the layers of a model, with a remat policy for the backward pass.

For the remat policy ``full``, the backward pass is written by hand, and the layers are split into
two loops. The backward pass first runs the loop over the last layers. The saved inputs of these
layers are then freed before memory is allocated for the gradients of the first layers. With a
single loop, the gradients and the saved inputs of all layers would be in memory together.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import checkpoint_policies
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_cpt.model.linear import has_adapters

# For each value of ``ComputeConfig.remat``, the JAX policy for what the forward pass saves.
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

# Minimum number of layers for two loops. With fewer layers, the memory that a second loop saves is
# not worth its compilation time.
DEEP = 16

Layer = Callable[[Any, jax.Array, Any], jax.Array]
"""A function ``(context, x, block) -> x`` that applies one layer with the parameters ``block``.

The layer is differentiated with respect to ``x`` and ``block``, but not with respect to
``context``.
"""


def run_layers(
    layer: Layer, context: Any, x: Float[Array, "batch length embed"], layers: Any, *, remat: str
) -> Float[Array, "batch length embed"]:
    """Apply all layers to ``x`` and return the output of the last layer.

    ``layers`` is a pytree of parameters that are stacked over layers, ``context`` is passed to
    every layer, and ``remat`` is a value of ``ComputeConfig.remat``.
    """
    if remat == "full" and not has_adapters(layers):
        return _recomputed(layer, context, x, layers)
    one_layer = partial(layer, context)
    if remat != "none":
        # ``prevent_cse`` is not needed in a scan, because XLA does not merge an instruction of the
        # forward loop with an instruction of the backward loop.
        policy = REMAT_POLICIES[remat]
        one_layer = jax.checkpoint(one_layer, policy=policy, prevent_cse=False)
    return jax.lax.scan(lambda x, block: (one_layer(x, block), None), x, layers)[0]


# Custom VJP: automatic differentiation of a scan makes one backward loop, which needs more memory
# (see the module's docstring). The forward pass saves the input of every layer, and the backward
# pass recomputes the layer from this input.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recomputed(layer: Layer, context: Any, x: jax.Array, layers: Any) -> jax.Array:
    return _forward(layer, context, x, layers)[0]


def _forward(
    layer: Layer, context: Any, x: jax.Array, layers: Any
) -> tuple[jax.Array, tuple[Any, list[jax.Array], Any]]:
    def one_layer(x: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        return layer(context, x, _at(layers, number)), x

    inputs = []
    for numbers in _loops(x, layers):
        x, part = jax.lax.scan(one_layer, x, numbers)
        inputs.append(part)
    return x, (context, inputs, layers)


def _backward(
    layer: Layer, saved: tuple[Any, list[jax.Array], Any], d_x: jax.Array
) -> tuple[None, jax.Array, Any]:
    # The last loop runs first, and each loop iterates over its layers in reverse. ``d_x`` is first
    # the gradient of the loss with respect to the output of a layer, and then with respect to the
    # input of that layer.
    context, inputs, layers = saved

    def one_layer(d_x: jax.Array, saved: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
        x, number = saved
        # Recomputes the layer from its input; ``pull`` returns the gradients of both arguments.
        _, pull = jax.vjp(partial(layer, context), x, _at(layers, number))
        return pull(d_x)

    gradients = []
    loops = _loops(inputs[0][0], layers)
    for part, numbers in reversed(list(zip(inputs, loops, strict=True))):
        d_x, gradient = jax.lax.scan(one_layer, d_x, (part, numbers), reverse=True)
        gradients.insert(0, gradient)
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *gradients)
    # None is a zero gradient: the context (RoPE angles and segment ids) is not differentiated.
    return None, d_x, joined


_recomputed.defvjp(_forward, _backward)


def _loops(x: jax.Array, layers: Any) -> list[jax.Array]:
    """Return the indices of the layers in each loop.

    The input of a layer has the size of ``x``. The division into loops minimizes the peak memory of
    the backward pass.
    """
    # The backward pass starts with the second loop. Let s be the share of the layers in that loop,
    # g the bytes of all gradients and i the bytes of all inputs. At the end of the second loop,
    # memory holds all inputs and s of the gradients: i + s g. At the end of the first loop, it
    # holds all gradients and 1 - s of the inputs: g + (1 - s) i. The larger of the two is smallest
    # if they are equal, which is the case for s = g / (g + i).
    leaves = jax.tree.leaves(layers)
    count, gradients = leaves[0].shape[0], sum(leaf.nbytes for leaf in leaves)
    inputs = count * x.nbytes
    first = round(count * inputs / (gradients + inputs))
    if count < DEEP or not 0 < first < count:
        return [jnp.arange(count)]
    return [jnp.arange(first), jnp.arange(first, count)]


def _at(layers: Any, number: jax.Array) -> Any:
    """Return the parameters of layer ``number`` from the stacked parameters ``layers``."""
    # ``0.0 * number`` makes the parameters depend on the loop counter. Otherwise XLA moves their
    # conversion to the compute dtype out of the loop and keeps converted copies of all layers.

    def take(leaf: jax.Array) -> jax.Array:
        parameter = jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False)
        return parameter + 0.0 * number.astype(parameter.dtype)

    return jax.tree.map(take, layers)
