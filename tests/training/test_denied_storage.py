"""Every command reports a path without access permission before it does any work."""

from dataclasses import replace

from etils import epath
import jax
import pytest

from llama_cpt import chat, convert, evaluate, fit_law, prepare, train
from llama_cpt.config.loading import load_config, save_config
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.errors import UserError
from llama_cpt.training.run import build_run
from tests.storage_server import bucket

__all__ = ["bucket"]

DENIED = "gs://bucket/place"
COMMANDS = [
    (convert.main, "from-hf", DENIED, "out"),
    (convert.main, "to-hf", DENIED, "out"),
    (convert.main, "from-hf", "out", DENIED),
    (chat.main, DENIED),
    (evaluate.main, DENIED, "--tasks", "mmlu", "--output", "out"),
    (fit_law.main, DENIED, "--output", "out"),
    (train.main, f"{DENIED}/config.json"),
]


@pytest.fixture
def denied(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bucket.status = 403
    return pytest.raises(UserError, match=rf"{DENIED}\S*: cannot be (read|written) \(Forbidden")


@pytest.mark.parametrize(
    ("main", "arguments"), [(main, arguments) for main, *arguments in COMMANDS]
)
def test_command_names_a_denied_path(main, arguments, denied):
    with denied:
        main(arguments)


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (evaluate.main, ["here", "--tasks", "mmlu", "--output", DENIED]),
        (fit_law.main, ["here", "--output", DENIED]),
        (train.main, [f"{DENIED}/config.py"]),
    ],
)
def test_local_only_paths_reject_a_bucket(main, arguments, bucket):
    bucket.put("place/config.py", b"", None)
    with pytest.raises(UserError, match=rf"{DENIED}\S* must be on this machine"):
        main(arguments)


def test_config_is_saved_to_and_loaded_from_a_bucket(bucket, make_config, tmp_path):
    config = make_config(tmp_path / "run")
    save_config(config, epath.Path("gs://bucket/run/config.json"))
    assert load_config("gs://bucket/run/config.json") == config


@pytest.mark.parametrize("field", ["output", "init_from", "tokenizer", "prepared"])
def test_run_names_a_denied_path(field, denied, make_config, tmp_path):
    config = make_config(tmp_path / "run")
    if field in ("tokenizer", "prepared"):
        config = replace(config, data=replace(config.data, **{field: DENIED}))
    else:
        config = replace(config, **{field: DENIED})
    with denied:
        build_run(config, make_mesh(config.mesh, jax.devices()[:1]))
    assert not (tmp_path / "run").exists()


def test_prepare_names_a_denied_folder(denied, make_config, tmp_path):
    config = make_config(tmp_path / "run")
    save_config(config, tmp_path / "config.json")
    with denied:
        prepare.main([str(tmp_path / "config.json"), "--data.prepared", DENIED])
