"""The state of a run, made sharded, and the one step that advances it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

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
    """What a step reads and replaces."""

    trained: Any
    """The model, or the adapters that are trained beside it."""
    frozen: Any
    """The model beside which adapters are trained; empty without them."""
    opt_state: Any

    @property
    def model(self) -> Llama:
        """What the state computes; the arrays are the state's own."""
        return combine(self.trained, self.frozen)

    @property
    def checkpointed(self) -> "TrainState":
        """What a checkpoint holds: all but what is read where the run started from."""
        return replace(self, frozen=())


def abstract_state(
    trained: Any, optimizer: optax.GradientTransformation, mesh: Mesh, frozen: Any = ()
) -> TrainState:
    """The state's shapes and shardings for abstract parts: moments lie as parameters do."""
    state = TrainState(trained, frozen, jax.eval_shape(optimizer.init, trained))
    return with_shardings(state, mesh)


def init_state(
    make_model: Callable[[], Any], optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """A state around a new model, born sharded: no device ever holds the whole of it."""

    def create() -> TrainState:
        model = make_model()
        return TrainState(model, (), optimizer.init(model))

    placed = shardings(jax.eval_shape(create), mesh)
    return jax.jit(create, out_shardings=placed)()


def state_from_model(model: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A state around ``model``'s own arrays, moments placed as they are."""
    placed = shardings(jax.eval_shape(optimizer.init, model), mesh)
    return TrainState(model, (), jax.jit(optimizer.init, out_shardings=placed)(model))


def make_train_step(objective: Objective, optimizer: optax.GradientTransformation) -> Callable:
    """``step(state, batch, learning_rate) -> (state, metrics)``.

    ``batch`` has a leading micro-batch dim; gradients and sums are added over it in float32 and
    divided once. ``learning_rate`` is a float32 scalar, so that one compilation serves every
    schedule.
    """

    def step(
        state: TrainState, batch: Batch, learning_rate: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        gradients, loss_sum, weight, sums = _accumulate(objective, state, batch)
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
        return TrainState(trained, state.frozen, opt_state), metrics

    return step


def jit_train_step(
    step: Callable, placed: TrainState, options: dict[str, bool] | None = None
) -> Callable:
    """``step`` compiled with the state donated and its shardings kept (``placed``)."""
    places = placed, None
    return jax.jit(step, donate_argnums=0, out_shardings=places, compiler_options=options)


def _accumulate(objective: Objective, state: TrainState, batch: Batch) -> tuple:
    """Gradients, loss sum, weight and sums, added over micro-batches one at a time."""

    def one(part: Batch) -> tuple:
        def loss(trained: Any) -> tuple:
            loss_sum, weight, sums = objective(combine(trained, state.frozen), part)
            return loss_sum, (weight, sums)

        value_and_gradients = jax.value_and_grad(loss, has_aux=True)
        (loss_sum, (weight, sums)), gradients = value_and_gradients(state.trained)
        return gradients, loss_sum, weight, sums

    if jax.tree.leaves(batch)[0].shape[0] == 1:
        return one(jax.tree.map(lambda leaf: leaf[0], batch))

    def add(total: tuple, part: Batch) -> tuple:
        return jax.tree.map(jnp.add, total, one(part)), None

    first = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], batch))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
    return jax.lax.scan(add, zeros, batch)[0]
