"""What lies where it is denied is named by every command that it is given to, before any work."""

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

PLACE = "gs://bucket/place"
COMMANDS = [
    (convert.main, "from-hf", PLACE, "out"),
    (convert.main, "to-hf", PLACE, "out"),
    (convert.main, "from-hf", "out", PLACE),
    (chat.main, PLACE),
    (evaluate.main, PLACE, "--tasks", "mmlu", "--output", "out"),
    (fit_law.main, PLACE, "--output", "out"),
    (train.main, f"{PLACE}/config.json"),
]


@pytest.fixture
def denied(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bucket.status = 403
    return pytest.raises(UserError, match=rf"{PLACE}\S*: cannot be (read|written) \(Forbidden")


@pytest.mark.parametrize(
    ("main", "arguments"), [(main, arguments) for main, *arguments in COMMANDS]
)
def test_a_command(main, arguments, denied):
    with denied:
        main(arguments)


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (evaluate.main, ["here", "--tasks", "mmlu", "--output", PLACE]),
        (fit_law.main, ["here", "--output", PLACE]),
        (train.main, [f"{PLACE}/config.py"]),
    ],
)
def test_what_must_lie_here(main, arguments, bucket):
    bucket.put("place/config.py", b"", None)
    with pytest.raises(UserError, match=rf"{PLACE}\S* must be on this machine"):
        main(arguments)


def test_a_config_in_a_bucket(bucket, make_config, tmp_path):
    config = make_config(tmp_path / "run")
    save_config(config, epath.Path("gs://bucket/run/config.json"))
    assert load_config("gs://bucket/run/config.json") == config


@pytest.mark.parametrize("field", ["output", "init_from", "tokenizer", "prepared"])
def test_a_run(field, denied, make_config, tmp_path):
    config = make_config(tmp_path / "run")
    if field in ("tokenizer", "prepared"):
        config = replace(config, data=replace(config.data, **{field: PLACE}))
    else:
        config = replace(config, **{field: PLACE})
    with denied:
        build_run(config, make_mesh(config.mesh, jax.devices()[:1]))
    assert not (tmp_path / "run").exists()


def test_rows_to_prepare(denied, make_config, tmp_path):
    config = make_config(tmp_path / "run")
    save_config(config, tmp_path / "config.json")
    with denied:
        prepare.main([str(tmp_path / "config.json"), "--data.prepared", PLACE])
