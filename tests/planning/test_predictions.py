"""Tests that a plan's figures for a small step on CPU devices equal analytic counts and a run."""

from collections import defaultdict
from functools import cache
from typing import Any

import jax
import pytest

from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import (
    ComputeConfig,
    CorpusConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)
from llama_cpt.data.batch import TokenBatch
from llama_cpt.model.flops import non_embedding_parameters
from llama_cpt.model.llama import Llama
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.planning.analytic import analytic_memory
from llama_cpt.planning.buffers import break_down_peak
from llama_cpt.planning.compiling import read_step
from llama_cpt.planning.step_plan import device_bytes
from llama_cpt.training.lowering import abstract_batch, lower_program
from llama_cpt.training.program import make_program
from llama_cpt.training.train_step import init_state

MODEL = ModelConfig(
    vocab_size=512,
    embed_dim=64,
    mlp_dim=128,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rope_theta=1e4,
    rope_scaling=None,
    norm_eps=1e-5,
    tied_embeddings=False,
    context_length=64,
)
LENGTH, ROWS, MICROBATCHES, WIDTH = 64, 16, 2, 4


def make(mesh: tuple[int, int, int]) -> TrainConfig:
    return TrainConfig(
        output="out",
        model=MODEL,
        data=DataConfig("tokens", "prepared", LENGTH, 0.0, original=(CorpusConfig("a", "a"),)),
        optimizer=OptimizerConfig(1e-3),
        num_steps=1,
        global_batch_size=ROWS,
        microbatch_size=ROWS // MICROBATCHES,
        mesh=MeshConfig(*mesh),
        compute=ComputeConfig("float32", "full", "reference", loss_chunk_tokens=32),
        evaluation=EvaluationConfig(batch_size=8),
    )


@cache
def compiled_on(mesh: tuple[int, int, int]) -> tuple[TrainConfig, Any, Any]:
    config = make(mesh)
    program = make_program(config, make_mesh(config.mesh), "cpu")
    return config, program, lower_program(config, program).compile()


def matrix_flops_by_hand(devices: int) -> float:
    """Return the FLOPs per device and step of all matrix products, counted analytically.

    Remat recomputes all products of a layer except the last, because the result is not used.
    """
    last = MODEL.num_layers * MODEL.mlp_dim * MODEL.embed_dim
    norms = (2 * MODEL.num_layers + 1) * MODEL.embed_dim
    layers = non_embedding_parameters(MODEL) - norms
    head = MODEL.vocab_size * MODEL.embed_dim
    # Scores and their product with the values, without the causal half: the reference computes all
    # pairs. There are 2 products forward, 2 recomputed, and 4 backward.
    attention = 8 * 2 * LENGTH * MODEL.num_heads * MODEL.head_dim * MODEL.num_layers
    return ROWS * LENGTH * (8 * layers - 2 * last + 6 * head + attention) / devices


@pytest.mark.slow
def test_plan_equals_the_memory_of_a_run():
    config, program, compiled = compiled_on((1, 4, 2))
    state, batch = program.state_shapes, abstract_batch(config, program.mesh)
    # Without NEFTune, the row numbers are not used, so they are no argument of the program. The
    # learning rate is a float32 argument of 4 bytes.
    assert isinstance(batch, TokenBatch)
    arguments = device_bytes((state, batch)) - device_bytes(batch.row) + 4
    assert arguments == compiled.memory_analysis().argument_size_in_bytes

    def model() -> Llama:
        return Llama(MODEL, jax.random.key(0), remat="full")

    with jax.set_mesh(program.mesh):
        live = init_state(model, program.optimizer, program.mesh)
        step = read_step(compiled.as_text(), dict(program.mesh.shape))
    held = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(live)]
    assert device_bytes(state) == sum(held)
    assert step.matrix.products == matrix_flops_by_hand(8)
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert step.live.bytes == pytest.approx(temporaries, rel=0.05)
    parts = break_down_peak(
        step.live, state.trained, layers=MODEL.num_layers, tokens=ROWS // MICROBATCHES // 4 * LENGTH
    )
    # The sum over micro-batches, and the part of one micro-batch that is complete at the peak.
    held = device_bytes(state.trained)
    assert held <= parts.gradients <= 2 * held
    assert parts.saved == MODEL.num_layers * ROWS // MICROBATCHES // 4 * LENGTH * 64 * WIDTH
    assert parts.gradients + parts.saved + parts.others == step.live.bytes
    by_hand = analytic_memory(config, program.mesh.shape)
    assert by_hand.arguments == pytest.approx(device_bytes((state.trained, state.opt_state)), 0.05)
    assert by_hand.total < arguments + temporaries


def collectives_by_hand(
    mesh: tuple[int, int, int], head_sharers: int, embedding_sharers: int
) -> dict[tuple[str, str], float]:
    """Return the bytes that a device receives per step, by kind and axis, counted analytically.

    If g devices hold one part each of an array, a device receives 1 - 1/g of the array in an
    all-gather or a reduce-scatter, and twice that in an all-reduce.
    """
    replica, fsdp, tensor = mesh
    tokens, width = ROWS // MICROBATCHES * LENGTH // (replica * fsdp), MODEL.embed_dim
    heads = (MODEL.num_heads + 2 * MODEL.num_kv_heads) * MODEL.head_dim
    projections = MODEL.num_layers * width * heads / tensor
    norms = 2 * MODEL.num_layers * width
    layers = (non_embedding_parameters(MODEL) - norms - width) / tensor
    table, others = MODEL.vocab_size * width / tensor, 1 - 1 / fsdp
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    # The layers are gathered for the forward and for the backward pass. Query, key and value are
    # gathered a third time, because their inner checkpoint recomputes them. On CPUs, XLA replaces
    # the reduce-scatter of the gradients by an all-reduce and a slice, which moves twice the bytes.
    found["all-gather", "fsdp"] += MICROBATCHES * (2 * layers + projections) * others
    summed = layers + (norms if replica == 1 else 0)
    found["all-reduce", "fsdp"] += MICROBATCHES * 2 * summed * others
    for sharers in (head_sharers, embedding_sharers):
        # The devices of a group exchange their slices, then gather their shares from other groups.
        # This happens once per step for the table, and once per micro-batch for its gradient.
        exchanged = table / fsdp * (1 - 1 / sharers)
        gathered = table / sharers * (1 - sharers / fsdp)
        found["all-to-all", "fsdp"] += (1 + MICROBATCHES) * exchanged
        found["all-gather", "fsdp"] += gathered
        found["reduce-scatter", "fsdp"] += MICROBATCHES * gathered
        # The activations of all tokens are gathered within a group, and the results are scattered.
        # For the head, these are activations and their gradients; for the embedding, gradients and
        # rows of the table.
        visits = MICROBATCHES * tokens * (sharers - 1)
        found["all-gather", "fsdp"] += visits * width
        found["reduce-scatter", "fsdp"] += visits * width
    # Gathered: targets and weights for the head, token ids for the embedding. Reduced: the largest
    # logit, the sum of exponentials and the target's logit.
    found["all-gather", "fsdp"] += (
        MICROBATCHES * tokens * (2 * head_sharers + embedding_sharers - 3)
    )
    found["all-reduce", "fsdp"] += MICROBATCHES * tokens * 2 * 3 * (head_sharers - 1)
    if replica > 1:
        parts = (layers + 2 * table) / fsdp
        found["all-reduce", "replica"] = MICROBATCHES * parts * 2 * (1 - 1 / replica)
    if tensor > 1:
        # Per layer: the outputs of attention and MLP in the forward pass, the output of attention
        # again in the recomputation, and the gradients of the inputs of query, key, value, gate and
        # up. Once: the embedding rows, the gradient of the head's input, and three numbers per
        # token.
        activations = MODEL.num_layers * (2 + 1 + 5) * width + 2 * width + 3
        found["all-reduce", "tensor"] = MICROBATCHES * tokens * activations * 2 * (1 - 1 / tensor)
    return {key: WIDTH * count for key, count in found.items() if count}


@pytest.mark.parametrize(
    ("mesh", "head_sharers", "embedding_sharers"),
    [
        pytest.param((1, 8, 1), 4, 2, marks=pytest.mark.slow),
        pytest.param((2, 4, 1), 4, 2, marks=pytest.mark.slow),
        ((1, 4, 2), 1, 1),
    ],
)
def test_collectives_equal_the_analytic_count(mesh, head_sharers, embedding_sharers):
    """Compare the plan's bytes with the analytic count; small all-reduces may add up to 0.2 %.

    The small all-reduces are for the metrics and the gradient norm.
    """
    _, program, compiled = compiled_on(mesh)
    step = read_step(compiled.as_text(), dict(program.mesh.shape))
    received: defaultdict[tuple[str, str], float] = defaultdict(float)
    for one in step.collectives:
        received[one.kind, " x ".join(one.axes)] += one.bytes
    by_hand = collectives_by_hand(mesh, head_sharers, embedding_sharers)
    assert {key: received.pop(key) for key in by_hand} == pytest.approx(by_hand, rel=0.002)
    assert sum(received.values()) < 0.002 * sum(by_hand.values())
