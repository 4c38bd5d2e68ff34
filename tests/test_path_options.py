"""Path options of all commands: names that no library can use are rejected before any work."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from etils import epath
import pytest

from llama_cpt import chat, convert, evaluate, fit_law, pipeline, plan, prepare, sweep
from llama_cpt import train as train_command
from llama_cpt.config.loading import save_config
from llama_cpt.config.schema import TrainConfig
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.errors import UserError
from tests.runs import run_of

CONTROL = "a\nb\x1b[2J"
SCORES = ("--output", "scores")
TEXT = ("--tasks", "bpb", "--heldout")
OPTIONS: dict[str, tuple[Callable[[list[str]], object], tuple[str, ...]]] = {
    "config of train": (train_command.main, ("BAD",)),
    "config of prepare": (prepare.main, ("BAD",)),
    "config of sweep": (sweep.main, ("BAD",)),
    "config of pipeline": (pipeline.main, ("BAD",)),
    "config of plan": (plan.main, ("BAD", "--topology", "v5e-8")),
    "data.prepared of prepare": (prepare.main, ("CONFIG", "--data.prepared", "BAD")),
    "results of fit_law": (fit_law.main, ("BAD", "--output", "law")),
    "--output of fit_law": (fit_law.main, ("results.csv", "--output", "BAD")),
    "MODEL of evaluate": (evaluate.main, ("BAD", *TEXT, "zh=t.jsonl", *SCORES)),
    "--output of evaluate": (evaluate.main, ("m", *TEXT, "zh=t.jsonl", "--output", "BAD")),
    "--data of evaluate": (evaluate.main, ("m", "--tasks", "mmlu", "--data", "BAD", *SCORES)),
    "--tokenizer of evaluate": (
        evaluate.main,
        ("m", *TEXT, "zh=t.jsonl", "--tokenizer", "BAD", *SCORES),
    ),
    "--no-counterpart of evaluate": (
        evaluate.main,
        ("m", *TEXT, "zh=t.jsonl", "--no-counterpart", "BAD", *SCORES),
    ),
    "--conversations of evaluate": (evaluate.main, ("m", "n", "--conversations", "BAD", *SCORES)),
    "MODEL of chat": (chat.main, ("BAD",)),
    "CHECKPOINT of to-hf": (convert.main, ("to-hf", "BAD", "hf")),
    "SOURCE of from-hf": (convert.main, ("from-hf", "BAD", "run")),
    "SOURCE of verify": (convert.main, ("verify", "BAD", "run")),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_path_with_control_characters_is_rejected(
    option, make_config, tmp_path, monkeypatch, capsys
):
    """The message shows the characters escaped, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    save_config(make_config(tmp_path / "run"), epath.Path(tmp_path / "config.json"))
    command, words = OPTIONS[option]
    names = {"BAD": CONTROL, "CONFIG": "config.json"}
    with pytest.raises(UserError, match=r"control characters such as newlines; rename") as error:
        command([names.get(word, word) for word in words])
    assert r"a\nb\x1b[2J" in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def with_source(config: TrainConfig, source: str) -> TrainConfig:
    corpus = replace(config.data.additional[0], source=source)
    return replace(config, data=replace(config.data, additional=(corpus,)))


@pytest.mark.parametrize("field", ["output", "init_from", "prepared", "tokenizer", "source"])
def test_config_path_with_control_characters_is_rejected(field, make_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_config("run")
    config = replace(config, data=replace(config.data, prepared="rows"))
    if field == "source":
        config = with_source(config, CONTROL)
    elif field in ("prepared", "tokenizer"):
        config = replace(config, data=replace(config.data, **{field: CONTROL}))
    else:
        config = replace(config, **{field: CONTROL})
    with pytest.raises(UserError, match=r"control characters such as newlines; rename"):
        run_of(config)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".array_record"]


def test_heldout_corpus_whose_documents_are_all_skipped_is_rejected(make_config, tmp_path):
    source = tmp_path / "empty.jsonl"
    source.write_text('{"text": ""}\n' * 3)
    config = make_config(tmp_path / "run")
    heldout = (replace(config.data.heldout[0], source=str(source)),)
    data = replace(
        config.data, prepared=str(tmp_path / "rows"), bad_documents="skip", heldout=heldout
    )
    with pytest.raises(UserError, match=r"zh.*no document"):
        run_of(replace(config, data=data))


def test_prepared_folder_is_literal(tmp_path: Path, make_config):
    """A folder whose name is a pattern that matches a different folder is not that folder."""
    config = make_config(tmp_path / "run")
    (tmp_path / "rows1").mkdir()
    data = replace(config.data, prepared=str(tmp_path / "rows[1]"))
    run_of(replace(config, data=data))
    assert (tmp_path / "rows[1]" / "zh").is_dir() and not list((tmp_path / "rows1").iterdir())


def test_tokenizer_error_names_the_option_of_every_command(tmp_path):
    with pytest.raises(UserError, match=r"set data\.tokenizer \(in chat, evaluate, make_repl"):
        load_tokenizer(str(tmp_path))
