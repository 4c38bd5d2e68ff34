"""Paths that libraries would parse as globs, chains or URLs are used literally, or rejected."""

from dataclasses import replace
import logging
from pathlib import Path
import re
import shutil
import signal

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt import evaluate
from llama_cpt.checkpoint import manifest
from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.errors import SaveError
from llama_cpt.checkpoint.run_folder import CHECKPOINTS_FOLDER
from llama_cpt.config.schema import CheckpointConfig, EvaluationConfig, TrainConfig
from llama_cpt.convert import from_hf
from llama_cpt.evaluation.named_models import parse_model_names
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.literal_paths import LiteralPath, files_below
from llama_cpt.training.reference import model_identity
from llama_cpt.weights.export import to_hf
from llama_cpt.weights.source import open_source
from tests.conftest import ROOT
from tests.runs import learnt, train, train_until

NAME = "a::b [lr 1e-3] *? #%20{c,d} ' \" $X ** ~"
STATE = {"trained": {"w": np.arange(6.0, dtype=np.float32)}}


def moved_below(folder: Path, config: TrainConfig, corpora: Path) -> TrainConfig:
    """Copy the corpora and the tokenizer to ``folder``; return ``config`` with all paths in it."""
    shutil.copytree(corpora, folder / "text", ignore=shutil.ignore_patterns("prepared"))
    moved = lambda corpus: replace(corpus, source=str(folder / "text" / Path(corpus.source).name))
    groups = ("additional", "original", "heldout")
    data = replace(
        config.data,
        tokenizer=str(folder / "text" / "tokenizer.model"),
        prepared=str(folder / "rows"),
        **{group: tuple(map(moved, getattr(config.data, group))) for group in groups},
    )
    return replace(config, output=str(folder / "run"), data=data)


@pytest.mark.slow
def test_run_below_any_name_stops_moves_resumes_and_converts(
    make_config, corpora, tmp_path, monkeypatch, caplog
):
    folder = tmp_path / NAME
    plain = make_config(tmp_path, num_steps=4, evaluation=EvaluationConfig(every_steps=100))
    config = moved_below(folder, plain, corpora)
    train_until(config, 2, monkeypatch, signal.SIGTERM)
    renamed = folder / "ok[1]"
    Path(config.output).rename(renamed)
    moved = replace(config, output=str(renamed), checkpoint=CheckpointConfig(every_steps=3, keep=1))
    with caplog.at_level(logging.INFO, "llama_cpt"):
        train(moved)
    assert "after step 2" in caplog.text
    assert [line["step"] for line in learnt(renamed) if "train/loss" in line] == [1, 2, 3, 4]
    with CheckpointManager(str(renamed / CHECKPOINTS_FOLDER)) as checkpoints:
        assert checkpoints.steps() == [4] and checkpoints.latest_verified() == 4
    to_hf(str(renamed), str(folder / "m[1]"), dtype="float32")
    from_hf(str(folder / "m[1]"), str(folder / "back[1]"))
    sources = open_source(str(renamed)), open_source(str(folder / "back[1]"))
    with sources[0].reader() as ours, sources[1].reader() as theirs:
        np.testing.assert_array_equal(ours.parameter("embedding"), theirs.parameter("embedding"))
    text = f"zh={folder}/text/zh.heldout.jsonl"
    models = [f"{model}={folder / name}" for model, name in (("a", "ok[1]"), ("b", "m[1]"))]
    options = ["--tasks", "bpb", "--heldout", text, "--output", str(folder / "scores {1}")]
    assert evaluate.main([*models, *options]) == 0
    scores = [folder / "scores {1}" / name / "bpb.jsonl" for name in ("a", "b")]
    assert scores[0].read_text().count("\n") == scores[1].read_text().count("\n") == 6


@pytest.mark.parametrize("name", ["m[1]", NAME])
def test_model_identity_reads_weights_below_any_name(make_config, tmp_path, name):
    model = make_config(tmp_path).architecture
    file = tmp_path / name / "model.safetensors"
    for folder in (tmp_path / "plain", file.parent):
        folder.mkdir()
        (folder / file.name).write_bytes(b"weights")
    first = model_identity(str(file.parent), model, 0)
    assert first == model_identity(str(tmp_path / "plain"), model, 0)
    file.write_bytes(b"Weights")
    assert model_identity(str(file.parent), model, 0) != first
    file.unlink()
    with pytest.raises(UserError, match=r"holds no \*\.safetensors"):
        model_identity(str(file.parent), model, 0)


def test_checkpoint_without_merged_files_is_not_committed(tmp_path, monkeypatch):
    folder = tmp_path / "run [1]" / CHECKPOINTS_FOLDER
    with CheckpointManager(str(folder)) as checkpoints:
        checkpoints.save(1, STATE, {})
        checkpoints.wait()
        monkeypatch.setattr(LiteralPath, "glob", epath.Path("/").__class__.glob)
        checkpoints.save(2, STATE, {})
        with pytest.raises(SaveError, match=r"step 2 was not saved.*did not write.*ocdbt") as error:
            checkpoints.wait()
        assert not error.value.transient and checkpoints.steps() == [1]
        assert checkpoints.latest_verified() == 1


def test_manifest_of_an_empty_folder_is_not_written(tmp_path):
    (tmp_path / "3").mkdir()
    with pytest.raises(FileNotFoundError, match="contains no files"):
        manifest.commit(epath.Path(tmp_path / "3"), 0, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_glob_excludes_a_sibling_that_matches_the_name(tmp_path):
    for name in ("a*", "ab"):
        (tmp_path / name / "parts").mkdir(parents=True)
        (tmp_path / name / "parts" / f"part_{name}").write_text("")
    found = list(LiteralPath(tmp_path / "a*").glob("parts/part_*"))
    assert [path.name for path in found] == ["part_a*"]
    assert files_below(str(tmp_path / "a*")) == ["parts/part_a*"]


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("run\n1", r"control characters"),
        ("run\0", r"control characters"),
        ("run\udcff", "UTF-8"),
        ("a\\b", r"reads \\ as /"),
        ("/gs/bucket/run", "read as gs://"),
        ("gs://bucket/run[1]", r"cannot hold \[ \]"),
        ("gs://bucket/run#1", "cannot hold #"),
        ("gs://bucket/a::b", "cannot hold ::"),
    ],
)
def test_unsupported_names_are_rejected_before_anything_is_written(
    make_config, tmp_path, monkeypatch, output, reason
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=reason):
        train(make_config(output))
    with pytest.raises(UserError, match=reason):
        CheckpointManager(output)
    assert not list(tmp_path.iterdir())


def test_model_folder_may_contain_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").mkdir()
    assert parse_model_names(["lr=3", "x=lr=3"]) == {"lr=3": "lr=3", "x": "lr=3"}


def test_one_array_is_restored_below_any_name(tmp_path):
    state = jax.tree.map(jnp.asarray, STATE | {"other": {"v": np.ones(3, np.float32)}})
    with CheckpointManager(str(tmp_path / NAME)) as checkpoints:
        checkpoints.save(1, state, {"a": 1})
        checkpoints.wait()
        found = checkpoints.restore_trained(1, state["trained"])
        np.testing.assert_array_equal(found["w"], STATE["trained"]["w"])
        assert checkpoints.metadata(1) == {"a": 1}


def test_no_other_module_globs_or_parses_user_paths():
    """Only ``literal_paths`` resolves URLs, and no module uses the ``glob`` of etils."""
    for file in (ROOT / "llama_cpt").rglob("*.py"):
        text = file.read_text("utf-8")
        if file.name != "literal_paths.py":
            assert not re.search(r"url_to_fs|fsspec\.open|open_files", text), file
        if "import epath" in text and file.name not in ("literal_paths.py", "metrics.py"):
            assert not re.search(r"(?<!Path\(folder\))(?<!_folder\))\.r?glob\(", text), file
