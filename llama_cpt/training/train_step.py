"""The sharded state of a run and the step that advances it."""

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
    """The state that a step reads and replaces."""

    trained: Any
    """The model, or the adapters if only they are trained."""
    frozen: Any
    """The model that adapters are added to; an empty tuple without adapters."""
    opt_state: Any

    @property
    def model(self) -> Llama:
        """The model with its adapters, if any; it shares the state's arrays."""
        return combine(self.trained, self.frozen)

    @property
    def checkpointed(self) -> "TrainState":
        """The part that checkpoints store: all but the frozen weights of ``init_from``."""
        return replace(self, frozen=())


def abstract_state(
    trained: Any, optimizer: optax.GradientTransformation, mesh: Mesh, frozen: Any = ()
) -> TrainState:
    """Return the abstract state; optimizer moments are sharded as their parameters."""
    state = TrainState(trained, frozen, jax.eval_shape(optimizer.init, trained))
    return with_shardings(state, mesh)


def init_state(
    make_model: Callable[[], Any], optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Return a state with a new model, created sharded: no device ever holds all of it."""

    def create() -> TrainState:
        model = make_model()
        return TrainState(model, (), optimizer.init(model))

    placed = shardings(jax.eval_shape(create), mesh)
    return jax.jit(create, out_shardings=placed)()


def state_from_model(model: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Return a state with the arrays of ``model`` and moments sharded as its parameters."""
    placed = shardings(jax.eval_shape(optimizer.init, model), mesh)
    return TrainState(model, (), jax.jit(optimizer.init, out_shardings=placed)(model))


def make_train_step(objective: Objective, optimizer: optax.GradientTransformation) -> Callable:
    """Return ``step(state, batch, learning_rate) -> (state, metrics)``.

    ``batch`` has a leading micro-batch dimension; gradients and sums are added over it in float32
    and divided once, by the weight of the whole batch. Micro-batches of different weight therefore
    give the gradient of the whole batch. ``learning_rate`` is a float32 scalar argument, so that
    one compilation serves every schedule.
    """

    def step(
        state: TrainState, batch: Batch, learning_rate: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        gradients, loss_sum, weight, sums = _accumulate(objective, state, batch)
        # A batch without target tokens has weight 0; its gradients are 0 and must not become NaN.
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
    """Return ``step`` jitted, with the state donated and its shardings ``placed`` kept."""
    out_shardings = placed, None
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings, compiler_options=options)


def _accumulate(objective: Objective, state: TrainState, batch: Batch) -> tuple:
    """Return gradients, loss sum, weight and sums, added over micro-batches one at a time."""

    def one(part: Batch) -> tuple:
        def loss(trained: Any) -> tuple:
            loss_sum, weight, sums = objective(combine(trained, state.frozen), part)
            return loss_sum, (weight, sums)

        value_and_gradients = jax.value_and_grad(loss, has_aux=True)
        (loss_sum, (weight, sums)), gradients = value_and_gradients(state.trained)
        return gradients, loss_sum, weight, sums

    # Without a scan, one micro-batch needs no buffer for the running sum of gradients.
    if jax.tree.leaves(batch)[0].shape[0] == 1:
        return one(jax.tree.map(lambda leaf: leaf[0], batch))

    def add(total: tuple, part: Batch) -> tuple:
        return jax.tree.map(jnp.add, total, one(part)), None

    first = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], batch))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
    return jax.lax.scan(add, zeros, batch)[0]
