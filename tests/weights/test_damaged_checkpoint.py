"""Every consumer of a run folder falls back to the same checkpoint if the newest is damaged."""

from collections.abc import Callable
from dataclasses import replace
import io
from pathlib import Path
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from llama_cpt import chat, convert
from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.config.loading import load_config
from llama_cpt.config.schema import CheckpointConfig, MeshConfig, TrainConfig
from llama_cpt.evaluation.named_models import ModelSpec, model_settings
from llama_cpt.generation.decoder import load_decoder
from llama_cpt.model.llama import abstract_llama
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.training.reference import model_identity
from llama_cpt.training.stop import Outcome
from llama_cpt.weights.export import to_hf
from llama_cpt.weights.prompt_format import prompt_format
from llama_cpt.weights.source import RunFolder, open_source
from tests.runs import run_of, train


@pytest.fixture(scope="module")
def run(make_config: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 1 and 2."""
    output = tmp_path_factory.mktemp("run") / "run"
    checkpoint = CheckpointConfig(every_steps=1, keep=2)
    assert train(make_config(output, num_steps=2, checkpoint=checkpoint)) is Outcome.FINISHED
    return output


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def change_digit(path: Path) -> None:
    text = path.read_text()
    assert '"vocab_size": ' in text
    path.write_text(text.replace('"vocab_size": ', '"vocab_size": 1'))


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def read(source: str, config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Return the result of each consumer of the run in ``source``. Outputs go to ``folder``."""
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    weights = open_source(source)
    weights.check(config.architecture)
    with weights.reader() as reader:
        query = np.asarray(reader.parameter("layers/query"))
    next_run = replace(config, output=str(folder / "next"), init_from=source)
    to_hf(source, str(folder / "hf"), dtype="float32")
    decoder = load_decoder(source, config.architecture, mesh, "float32")
    return {
        "step": RunFolder(source).step,
        "architecture": weights.architecture,
        "tokenizer": weights.tokenizer,
        "fingerprint": weights.fingerprint(),
        "weights": leaves(weights.load(abstract_llama(config.architecture), mesh)),
        "reader": query,
        "decoder": leaves(decoder),
        "training": leaves(run_of(next_run).start().trained),
        "identity": model_identity(source, config.architecture, 0),
        "evaluation": model_settings(
            ModelSpec(source, config.architecture, prompt_format(weights))
        ),
        "export": (folder / "hf" / "model.safetensors").read_bytes(),
        "verify": convert.verify(str(folder / "hf"), source),
    }


def talk(source: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> str:
    capfd.readouterr()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hill\n")))
    assert chat.main([source, "--temperature", "0", "--max-new-tokens", "8"]) == 0
    return capfd.readouterr().out


@pytest.fixture(scope="module")
def without_newest(run, tmp_path_factory) -> tuple[str, dict[str, Any]]:
    """The run without its newest checkpoint, and the result of each consumer."""
    folder = tmp_path_factory.mktemp("removed")
    source = folder / "run"
    shutil.copytree(run, source)
    for path in (source / "checkpoints").glob("2*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return str(source), read(str(source), load_config(str(source / "config.json")), folder)


@pytest.mark.parametrize("harm", [cut, pytest.param(change_digit, marks=pytest.mark.slow)])
def test_every_consumer_reads_the_newest_verified_checkpoint(
    harm, run, without_newest, tmp_path, monkeypatch, capfd, caplog
):
    source, (other, expected) = tmp_path / "run", without_newest
    shutil.copytree(run, source)
    harm(source / "checkpoints/2/_CHECKPOINT_METADATA")
    found = read(str(source), load_config(str(source / "config.json")), tmp_path)
    assert caplog.text.count("falling back to the checkpoint of step 1") == 1
    assert found["step"] == 1 and found["verify"] == 0
    for consumer in found:
        np.testing.assert_equal(found[consumer], expected[consumer], consumer)
    if harm is cut:
        answers = [talk(path, monkeypatch, capfd) for path in (str(source), other)]
        assert answers[0] == answers[1] != ""


def test_a_source_keeps_its_step_while_the_run_saves_the_next(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    source = open_source(str(tmp_path / "run"))
    assert isinstance(source, RunFolder)
    metadata, fingerprint = source.metadata, source.fingerprint()
    with CheckpointManager(str(tmp_path / "run/checkpoints"), keep=9) as checkpoints:
        checkpoints.save(3, {"trained": {"w": np.ones(3)}}, metadata | {"step": 3})
    assert source.step == 2 and source.fingerprint() == fingerprint
    assert RunFolder(str(tmp_path / "run")).step == 3
