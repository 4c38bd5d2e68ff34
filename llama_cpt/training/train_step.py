"""The sharded training state and the training step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from llama_cpt.data.batch import Batch
from llama_cpt.model.llama import Llama
from llama_cpt.model.lora import combine
from llama_cpt.objectives.next_token import Objective
from llama_cpt.parallel.mesh import shardings, with_shardings


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state of a training run: weights and optimizer state."""

    trained: Any
    """The adapters in a LoRA run, and the model in any other run."""
    frozen: Any
    """The frozen base model in a LoRA run, and an empty tuple in any other run."""
    opt_state: Any
    """The optimizer state of ``trained``."""

    @property
    def model(self) -> Llama:
        """The model, which shares the arrays of the state. For LoRA, it includes the adapters."""
        return combine(self.trained, self.frozen)

    @property
    def checkpointed(self) -> "TrainState":
        """The part of the state that a checkpoint stores: everything except frozen weights."""
        return replace(self, frozen=())


def abstract_state(
    trained: Any, optimizer: optax.GradientTransformation, mesh: Mesh, frozen: Any = ()
) -> TrainState:
    """Return the training state as ShapeDtypeStructs with shardings on ``mesh``.

    ``trained`` and ``frozen`` are the abstract weights. Optimizer moments have the shardings of
    their parameters.
    """
    state = TrainState(trained, frozen, jax.eval_shape(optimizer.init, trained))
    return with_shardings(state, mesh)


def init_state(
    make_model: Callable[[], Any], optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Return a state with the model that ``make_model`` creates and a new optimizer state.

    The model is created inside a jitted function with its final shardings, so no device ever stores
    the whole model.
    """

    def create() -> TrainState:
        model = make_model()
        return TrainState(model, (), optimizer.init(model))

    placed = shardings(jax.eval_shape(create), mesh)
    return jax.jit(create, out_shardings=placed)()


def state_from_model(model: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Return a state with the sharded arrays of ``model`` and a new optimizer state.

    Optimizer moments have the shardings of their parameters.
    """
    placed = shardings(jax.eval_shape(optimizer.init, model), mesh)
    return TrainState(model, (), jax.jit(optimizer.init, out_shardings=placed)(model))


def donatable(arrays: Any, mesh: Mesh) -> Any:
    """Return the pytree ``arrays`` in memory that a step can donate.

    On a CPU, arrays that were read from files are in the memory of NumPy. A step cannot write its
    results to that memory and would need as much memory again. These arrays are copied one at a
    time. If the caller keeps no reference to ``arrays``, the memory of each array is freed before
    the next array is copied.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return arrays
    leaves, structure = jax.tree.flatten(arrays)
    del arrays
    for number, leaf in enumerate(leaves):
        leaves[number] = jax.block_until_ready(jnp.copy(leaf))
    return jax.tree.unflatten(structure, leaves)


class Limits(NamedTuple):
    """The largest loss and gradient norm that are not a spike, as finite float32 scalars."""

    loss: Any
    grad_norm: Any


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """Return the function ``step(state, batch, learning_rate, limits=None) -> (state, metrics)``.

    The fields of ``batch`` have a leading micro-batch dimension. Gradients and losses are summed
    over micro-batches in float32 and divided once by the weight of the whole batch, so the result
    is the gradient of the whole batch even if micro-batches have different weights.
    ``learning_rate`` is a float32 scalar argument, so one compilation serves every schedule.
    ``metrics`` contains ``loss``, ``grad_norm`` and ``sums``. ``sums`` maps the name of each metric
    of the objective to the sum of its values and the sum of their weights. If ``limits`` is given,
    and the loss or the gradient norm exceeds its limit or is NaN, the returned state equals
    ``state``.
    """

    def step(
        state: TrainState, batch: Batch, learning_rate: jax.Array, limits: Limits | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        gradients, loss_sum, weight, sums = _accumulate(objective, state, batch)
        # A batch without target tokens has weight 0. Its gradients are 0, and a division by 0 would
        # turn them into NaN.
        weight = jnp.maximum(weight, 1.0)
        gradients = jax.tree.map(lambda g: g / weight, gradients)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.trained)
            trained = jax.tree.map(lambda p, u: p - learning_rate * u, state.trained, updates)
        metrics = {
            "loss": loss_sum / weight,
            "grad_norm": optax.tree.norm(gradients),
            "sums": sums,
        }
        if limits is not None:
            # The comparisons are False for NaN. Each selection is fused with the update of its
            # array and writes to the memory of the old array, so no second state is stored.
            within = metrics["loss"] <= limits.loss
            within &= metrics["grad_norm"] <= limits.grad_norm
            old = state.trained, state.opt_state
            trained, opt_state = jax.tree.map(
                lambda new, old: jnp.where(within, new, old), (trained, opt_state), old
            )
        return TrainState(trained, state.frozen, opt_state), metrics

    return step


def jit_train_step(
    step: Callable[..., Any], placed: TrainState, options: dict[str, Any] | None = None
) -> jax.stages.Wrapped:
    """Return the jitted ``step``, which donates the state.

    ``placed`` contains the shardings of the returned state. ``options`` contains compiler options.
    """
    out_shardings = placed, None
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings, compiler_options=options)


def _accumulate(objective: Objective, state: TrainState, batch: Batch) -> tuple[Any, ...]:
    """Return the sums over micro-batches of gradients, loss, weight and metrics."""

    def one(part: Batch) -> tuple[Any, ...]:
        def loss(trained: Any) -> tuple[Any, ...]:
            loss_sum, weight, sums = objective(combine(trained, state.frozen), part)
            return loss_sum, (weight, sums)

        value_and_gradients = jax.value_and_grad(loss, has_aux=True)
        (loss_sum, (weight, sums)), gradients = value_and_gradients(state.trained)
        return gradients, loss_sum, weight, sums

    # A single micro-batch needs no scan and therefore no buffer for summed gradients.
    if jax.tree.leaves(batch)[0].shape[0] == 1:
        return one(jax.tree.map(lambda leaf: leaf[0], batch))

    def add(total: tuple[Any, ...], part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(part)), None

    first = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], batch))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
    return jax.lax.scan(add, zeros, batch)[0]
