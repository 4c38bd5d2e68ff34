"""A LoRA run trains and saves only adapters, resumes bit-exactly, and loads as a merged model."""

from dataclasses import replace
from pathlib import Path
import shutil
import signal

import jax
import numpy as np
import pytest

from llama_cpt.checkpoint.run_folder import open_run
from llama_cpt.config.schema import ComputeConfig, LoraConfig, TrainConfig
from llama_cpt.model.lora import merge_adapters
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.errors import UserError
from llama_cpt.training.first_state import restore_state
from llama_cpt.training.program import make_program
from llama_cpt.training.stop import Outcome
from llama_cpt.weights.source import open_source
from tests.runs import learnt, run_of, saved_steps, train, train_until

LORA = LoraConfig(rank=2, alpha=64.0, targets=("query", "up", "down"))


@pytest.fixture(scope="module")
def base(make_config, tmp_path_factory) -> Path:
    """The folder of a run of two steps, which serves as the base model."""
    output = tmp_path_factory.mktemp("base") / "run"
    train(make_config(output, num_steps=2))
    return output


@pytest.fixture(scope="module")
def lora_config(make_config, base):
    def make(output: Path, **fields) -> TrainConfig:
        return make_config(output, **({"lora": LORA, "init_from": str(base)} | fields))

    return make


@pytest.fixture(scope="module")
def whole(lora_config, tmp_path_factory) -> Path:
    """The folder of an uninterrupted LoRA run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert train(lora_config(output)) is Outcome.FINISHED
    return output


def test_run_starts_with_the_loss_of_the_base(base, whole):
    before, lines = learnt(base)[-1], learnt(whole)
    for language in ("zh", "en"):
        key = f"eval/{language}/loss"
        assert lines[0][key] == before[key]
        assert lines[-1][key] < before[key] - 0.01


@pytest.mark.parametrize("steps", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_resumed_run_is_bit_exact(steps, whole, lora_config, tmp_path, monkeypatch):
    config = lora_config(tmp_path / "run")
    assert train_until(config, steps, monkeypatch, signal.SIGTERM) is Outcome.PREEMPTED
    assert saved_steps(tmp_path / "run")[-1] == steps
    assert train(config) is Outcome.FINISHED
    assert learnt(tmp_path / "run") == learnt(whole)


def test_state_and_checkpoint_hold_only_adapters(whole, lora_config):
    factors = {f"{target}/{factor}" for target in LORA.targets for factor in ("a", "b")}
    program = run_of(lora_config(whole)).program
    adam = program.state_shapes.opt_state[1]
    for tree in (adam.mu, adam.nu, program.state_shapes.trained):
        paths = jax.tree_util.tree_leaves_with_path(tree)
        assert {"/".join(key.name for key in path[:2]) for path, _ in paths} == factors
    checkpoints, step = open_run(str(whole))
    with checkpoints:
        saved = checkpoints._orbax.metadata(checkpoints.folder / str(step)).item_metadata
    assert saved is not None
    tree = saved.tree
    assert set(tree) == {"trained", "opt_state"} and set(tree["trained"]) == set(LORA.targets)


@pytest.mark.slow
def test_frozen_weights_are_in_the_compute_type(lora_config, tmp_path):
    config = lora_config(tmp_path / "run", compute=ComputeConfig("bfloat16", loss_chunk_tokens=24))
    config = replace(config, num_steps=2)
    assert train(config) is Outcome.FINISHED
    run = run_of(config)
    checkpoints, step = open_run(config.output)
    with checkpoints, jax.set_mesh(run.program.mesh):
        state = restore_state(run, checkpoints, step)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.frozen)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.trained)} == {"float32"}


def test_next_run_starts_from_merged_adapters(whole, lora_config, make_config, tmp_path):
    run = run_of(lora_config(whole))
    checkpoints, step = open_run(str(whole))
    with checkpoints, jax.set_mesh(run.program.mesh):
        state = restore_state(run, checkpoints, step)
    loaded = open_source(str(whole)).load(run.program.state_shapes.frozen, run.program.mesh)
    expected = merge_adapters(state.frozen, state.trained)
    for have, want in zip(jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(have, want)
    train(make_config(tmp_path / "next", num_steps=2, init_from=str(whole)))
    key = "eval/zh/loss"
    np.testing.assert_allclose(learnt(tmp_path / "next")[0][key], learnt(whole)[-1][key], rtol=1e-5)


@pytest.mark.parametrize(
    ("lora", "field"),
    [
        (replace(LORA, rank=4), "lora.rank was 2, is 4, and cannot change"),
        (replace(LORA, targets=("query", "up")), "lora.targets was .*, and cannot change"),
        (replace(LORA, alpha=1.0), "lora.alpha was 64.0, is 1.0.*--allow-change lora.alpha"),
        (None, "lora.rank was 2, is absent, and cannot change"),
    ],
)
def test_resume_rejects_other_adapters(lora, field, whole, lora_config):
    with pytest.raises(UserError, match=field):
        train(lora_config(whole, lora=lora))


def test_rank_above_the_matrix_is_rejected_before_work(lora_config, tmp_path):
    config = lora_config(tmp_path / "run", lora=replace(LORA, rank=17))
    with pytest.raises(UserError, match="lora.rank=17 exceeds the rank of the matrix 'query', 16"):
        run_of(config)


def test_resume_rejects_other_frozen_weights(base, whole, lora_config, make_config, tmp_path):
    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    config = lora_config(tmp_path / "run", init_from=str(moved), num_steps=2)
    train(config)
    # After more training, the newest checkpoint of the base run contains a different model.
    train(make_config(moved, num_steps=3), allow_change=["optimizer"])
    with pytest.raises(
        UserError, match="embedding differs from the weights that the adapters were"
    ):
        train(replace(config, num_steps=3))
    shutil.rmtree(moved)
    with pytest.raises(UserError, match=f"run holds adapters.*were at '{moved}'; restore them"):
        open_source(config.output).check(config.architecture)
    with pytest.raises(UserError, match=f"{moved}: no such folder"):
        run_of(replace(config, num_steps=3))


def test_lora_state_is_smaller(make_config, tmp_path):
    """The optimizer state and the gradients contain only the adapters."""
    config = make_config(tmp_path / "run")
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    sizes = {}
    for lora in (None, LORA):
        program = make_program(replace(config, lora=lora, init_from="base"), mesh, "cpu")
        sizes[lora] = sum(leaf.size for leaf in jax.tree.leaves(program.state_shapes))
    model = sum(leaf.size for leaf in jax.tree.leaves(program.state_shapes.frozen))
    assert sizes[None] > 3 * model
    assert sizes[LORA] < 1.5 * model
