"""A run's weights are loaded only into a model of the same architecture."""

from dataclasses import replace
from pathlib import Path

import jax
import pytest

from llama_cpt.checkpoint.run_folder import save_weights
from llama_cpt.config.fields import to_dict
from llama_cpt.config.schema import MeshConfig
from llama_cpt.model.llama import Llama, abstract_llama
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.source import open_source
from tests.tiny_run import tiny_model

CONFIG = tiny_model(32, context_length=64)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    model = Llama(CONFIG, jax.random.key(0))
    save_weights(str(folder), model, {"config": {"model": to_dict(CONFIG)}})
    return folder


def test_load_keeps_the_options_of_the_shapes(run: Path):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=1), jax.devices()[:4])
    model = open_source(str(run)).load(abstract_llama(CONFIG, remat="full"), mesh)
    assert model.remat == "full"
    sharding = model.layers.query.get_value().sharding
    assert isinstance(sharding, jax.NamedSharding) and sharding.mesh == mesh
    drawn = Llama(CONFIG, jax.random.key(0))
    for ours, theirs in zip(jax.tree.leaves(model), jax.tree.leaves(drawn), strict=True):
        assert (ours == jax.device_put(theirs, ours.sharding)).all()


def test_load_rejects_another_constant(run: Path):
    other = abstract_llama(replace(CONFIG, rope_theta=5e5))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(UserError, match=r"model\.rope_theta=500000.0, but .* has 10000.0"):
        open_source(str(run)).load(other, mesh)
    with pytest.raises(UserError, match="to use the latter, leave model out of the config"):
        open_source(str(run)).check(other.config)


def test_home_folder_is_expanded(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(run.parent))
    source = open_source(f"~/{run.name}")
    source.check(CONFIG)
    assert source.fingerprint() == open_source(str(run)).fingerprint()
