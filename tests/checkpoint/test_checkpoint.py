"""Checkpoints are exact and verified, and an incomplete checkpoint is never committed."""

import dataclasses
import functools
import itertools
import json
from pathlib import Path
import socket
import subprocess
import sys
import textwrap

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llama_cpt.checkpoint import manifest
from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.run_folder import open_run, save_weights
from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import MeshConfig
from llama_cpt.model.llama import abstract_llama
from llama_cpt.parallel.mesh import make_mesh, shardings, with_shardings
from llama_cpt.runtime.errors import UserError
from llama_cpt.training.train_step import TrainState

TINY = ModelConfig(
    vocab_size=64,
    embed_dim=32,
    mlp_dim=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=10000.0,
    rope_scaling=None,
    norm_eps=1e-5,
    tied_embeddings=False,
    context_length=128,
)
METADATA = {"step": 3, "rows_consumed": 24, "config": {"seed": 0, "almr": 0.33, "empty": None}}


@functools.cache
def model_shapes(config=TINY):
    return abstract_llama(config)


def make_model(seed=0):
    """Return a model with random numbers that are fast to generate."""
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape).astype(np.float32))
    return jax.tree.map(draw, model_shapes())


def make_state(mesh, seed=0):
    """Return a model with optimizer moments that are not zero, sharded on ``mesh``."""
    model = make_model(seed)
    zeros = optax.scale_by_adam().init(model)
    assert isinstance(zeros, optax.ScaleByAdamState)
    moments = zeros._replace(count=jnp.int32(3), mu=make_model(seed + 8), nu=make_model(seed + 9))
    state = TrainState(model, (), (moments,))
    return jax.device_put(state, shardings(state, mesh))


def load_trained(folder, abstract, step=None):
    checkpoints, step = open_run(folder, step)
    with checkpoints:
        return checkpoints.restore_trained(step, abstract)


def abstract_of(state, mesh):
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    return with_shardings(shapes, mesh)


def assert_same_bits(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def small(value):
    return {"trained": {"w": jnp.full((64,), value, jnp.float32)}}


def save_small(folder, *steps, keep=9):
    with CheckpointManager(str(folder), keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, small(step), {"step": step})


def biggest_file(folder):
    return max((p for p in Path(folder).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 4, 2), (2, 2, 2), (1, 1, 1)])
def test_restore_is_exact_on_any_mesh(tmp_path, sizes):
    state = make_state(make_mesh(MeshConfig(1, 8, 1)))
    with CheckpointManager(str(tmp_path), keep=1) as checkpoints:
        checkpoints.save(3, state, METADATA)
        checkpoints.wait()
        mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])
        abstract = abstract_of(state, mesh)
        assert checkpoints.latest_verified() == 3
        restored = checkpoints.restore(3, abstract)
        assert checkpoints.metadata(3) == METADATA
    assert_same_bits(restored, state)
    for array, want in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True):
        assert array.sharding == want.sharding


def test_save_is_a_snapshot_of_the_state(tmp_path):
    """Donated and overwritten buffers do not change a save that is still in progress."""
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = jax.device_put({"trained": {"w": np.arange(4_000_000, dtype=np.float32)}})
    before = np.array(state["trained"]["w"])
    with CheckpointManager(str(tmp_path), keep=1) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(5):
            state = advance(state)
        checkpoints.wait()
        restored = checkpoints.restore(1, jax.eval_shape(lambda: state))
    np.testing.assert_array_equal(restored["trained"]["w"], before)


def test_checkpoint_has_no_flax_names(tmp_path):
    with CheckpointManager(str(tmp_path), keep=1) as checkpoints:
        checkpoints.save(0, {"trained": make_model()}, {})
    tree = json.loads((tmp_path / "0" / "_METADATA").read_text())["tree_metadata"]
    assert "('trained', 'layers', 'query')" in tree
    assert "('trained', 'lm_head')" in tree


def test_restore_trained_reads_parameters_of_a_run(tmp_path):
    mesh = make_mesh(MeshConfig(1, 8, 1))
    state = make_state(mesh)
    with CheckpointManager(str(tmp_path / "checkpoints"), keep=2) as checkpoints:
        checkpoints.save(1, make_state(mesh, seed=1), {})
        checkpoints.save(2, state, {})
    abstract = with_shardings(model_shapes(), make_mesh(MeshConfig(1, 4, 2)))
    model = load_trained(str(tmp_path), abstract)
    assert_same_bits(model, state.trained)
    assert model.layers.query.get_metadata("axes") == ("layers", "embed", "heads")
    assert_same_bits(
        load_trained(str(tmp_path / "checkpoints"), model_shapes(), step=1),
        make_state(mesh, seed=1).trained,
    )
    with pytest.raises(UserError, match="no checkpoint of step 5; choose one of"):
        load_trained(str(tmp_path), abstract, step=5)


def test_save_weights_writes_a_model_without_optimizer(tmp_path):
    model = make_model()
    save_weights(str(tmp_path / "run"), model, {"step": 0})
    assert_same_bits(load_trained(str(tmp_path / "run"), model_shapes()), model)
    with pytest.raises(UserError, match="contains checkpoints already"):
        save_weights(str(tmp_path / "run"), model, {"step": 0})
    with pytest.raises(UserError, match="contains no checkpoint"):
        load_trained(str(tmp_path / "nowhere"), model_shapes())


def test_restore_rejects_another_model_by_name(tmp_path):
    save_weights(str(tmp_path), make_model(), {})
    wide = dataclasses.replace(TINY, mlp_dim=128)
    with pytest.raises(UserError, match=r"trained/layers/down is float32\[2, 64, 32\].*128"):
        load_trained(str(tmp_path), model_shapes(wide))
    tied = dataclasses.replace(TINY, tied_embeddings=True)
    with pytest.raises(UserError, match="has trained/lm_head, which is not in the model"):
        load_trained(str(tmp_path), model_shapes(tied))
    with CheckpointManager(str(tmp_path / "checkpoints")) as checkpoints:
        with pytest.raises(UserError, match="has no opt_state/count"):
            wanted = {"trained": model_shapes(), "opt_state": {"count": jnp.int32(0)}}
            checkpoints.restore(0, wanted)


def test_repeated_save_of_a_step_changes_nothing(tmp_path):
    with CheckpointManager(str(tmp_path), keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, small(step), {})
        checkpoints.save(3, small(9), {})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
        assert checkpoints.restore(3, small(0))["trained"]["w"][0] == 3
    assert sorted({path.name.split(".")[0] for path in tmp_path.iterdir()}) == ["2", "3"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (flip, "was altered"),
        (Path.unlink, "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes instead of"),
    ],
)
def test_damaged_file_falls_back_to_previous_checkpoint(tmp_path, caplog, harm, words):
    save_small(tmp_path, 1, 2)
    bad = biggest_file(tmp_path / "2")
    harm(bad)
    with CheckpointManager(str(tmp_path), keep=1) as checkpoints:
        assert checkpoints.latest_verified() == 1
        assert str(bad) in caplog.text and words in caplog.text
        assert "falling back to the checkpoint of step 1" in caplog.text
        # A new save of step 2 replaces the damaged checkpoint. Step 1 is removed after that.
        checkpoints.save(2, small(2), {})
        checkpoints.wait()
        assert checkpoints.latest_verified() == 2
        assert checkpoints.steps() == [2]
    assert load_trained(str(tmp_path), {"w": small(0)["trained"]["w"]})["w"][0] == 2


def test_damaged_manifest_falls_back_until_nothing_is_left(tmp_path, caplog):
    save_small(tmp_path, 1, 2)
    (tmp_path / "2.manifest-00000-of-00001.json").write_text('{"all_files": 3')
    with CheckpointManager(str(tmp_path)) as checkpoints:
        assert checkpoints.latest_verified() == 1
    assert "manifest cannot be read" in caplog.text
    flip(biggest_file(tmp_path / "1"))
    with CheckpointManager(str(tmp_path)) as checkpoints:
        with pytest.raises(UserError, match=r"every checkpoint is damaged \(steps: \[1, 2\]\)"):
            checkpoints.latest_verified()


def test_folders_may_be_relative_or_remote(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert (
        str(CheckpointManager("gs://bucket/run/checkpoints").folder)
        == "gs://bucket/run/checkpoints"
    )
    save_small("runs/a/checkpoints", 1)
    assert load_trained("runs/a", {"w": small(0)["trained"]["w"]})["w"][0] == 1


def test_step_committed_during_a_removal_is_kept(tmp_path, monkeypatch):
    """A second process commits step 2 after the first process has listed the steps."""
    save_small(tmp_path, 1)
    committed_steps, commit, looks = manifest.committed_steps, manifest.commit, itertools.count()

    def at_first_without_2(folder):
        late = next(looks) == 0
        return [step for step in committed_steps(folder) if not (late and step == 2)]

    def commit_then_hide(*arguments):
        commit(*arguments)
        monkeypatch.setattr(manifest, "committed_steps", at_first_without_2)

    monkeypatch.setattr(manifest, "commit", commit_then_hide)
    save_small(tmp_path, 2, keep=1)
    assert committed_steps(tmp_path) == [2]


def test_manifest_is_complete_once_all_processes_wrote_theirs(tmp_path):
    save_small(tmp_path, 1)
    (tmp_path / "1.manifest-00000-of-00001.json").unlink()
    step = epath.Path(tmp_path / "1")
    for part in (2, 0):
        manifest.commit(step, part, 3)
        assert manifest.committed_steps(step.parent) == []
    manifest.commit(step, 1, 3)
    assert manifest.committed_steps(step.parent) == [1]
    assert [manifest.find_damage(step, part, 2) for part in (0, 1)] == [None, None]
    flip(biggest_file(tmp_path / "1"))
    assert sum(manifest.find_damage(step, part, 2) is not None for part in (0, 1)) == 1


TWO_PROCESSES = textwrap.dedent("""
    import os
    import pathlib
    import sys

    folder, coordinator, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    import jax

    jax.distributed.initialize(coordinator, num_processes=2, process_id=process)
    from jax.sharding import NamedSharding, PartitionSpec
    from llama_cpt.config.schema import MeshConfig
    from llama_cpt.parallel.mesh import make_mesh
    from llama_cpt.checkpoint.checkpoint import CheckpointManager
    import numpy as np

    sharding = NamedSharding(make_mesh(MeshConfig(1, 8, 1)), PartitionSpec("fsdp"))

    def state(step):
        values = np.arange(80_000, dtype=np.float32).reshape(8, -1) + step
        place = lambda index: values[index]
        return {"trained": {"w": jax.make_array_from_callback(values.shape, sharding, place)}}

    with CheckpointManager(folder, keep=2) as checkpoints:
        assert checkpoints.latest_verified() is None
        for step in (1, 2, 3):
            checkpoints.save(step, state(step), {"step": step})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3], checkpoints.steps()
        if process == 0:
            files = [path for path in pathlib.Path(folder, "3").rglob("*") if path.is_file()]
            largest = max(files, key=lambda path: path.stat().st_size)
            data = bytearray(largest.read_bytes())
            data[len(data) // 2] ^= 1
            largest.write_bytes(data)
        from jax.experimental import multihost_utils
        multihost_utils.sync_global_devices("flipped")
        assert checkpoints.latest_verified() == 2
        restored = checkpoints.restore(2, state(0))
        for found, want in zip(restored["trained"]["w"].addressable_shards,
                               state(2)["trained"]["w"].addressable_shards, strict=True):
            assert np.array_equal(found.data, want.data)
        checkpoints.save(3, state(3), {"step": 3})
""")


@pytest.mark.slow
def test_two_processes_write_one_checkpoint(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    folder = tmp_path / "checkpoints"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(folder), coordinator, str(process)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        printed = [child.communicate(timeout=120)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], printed
    assert sum("was altered" in text for text in printed) == 1
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        f"{step}.manifest-0000{part}-of-00002.json" for step in (2, 3) for part in (0, 1)
    ]
    w = load_trained(str(tmp_path), {"w": jax.ShapeDtypeStruct((8, 10_000), jnp.float32)})["w"]
    np.testing.assert_array_equal(w, np.arange(80_000, dtype=np.float32).reshape(8, -1) + 3)
