"""Messages of the subcommands of convert name only options that the subcommand has."""

import json
import re

import pytest

from llama_cpt import chat, convert, evaluate, make_replay
from llama_cpt.runtime.errors import UserError
from tests.weights.hf_models import add_tokenizer, save_llama

OPTION = r"--[a-z][\w-]*"
QUALIFIED = re.compile(rf"\(in ([^()]*): ({OPTION})\)")
COMMANDS = {"chat": chat, "evaluate": evaluate, "make_replay": make_replay}


def options_of(command, capsys):
    """Return the options in the help text of ``command``, such as ``convert to-hf``."""
    name, *subcommand = command.split()
    with pytest.raises(SystemExit):
        COMMANDS.get(name, convert).main([*subcommand, "--help"])
    return set(re.findall(OPTION, capsys.readouterr().out))


@pytest.fixture
def models(tmp_path):
    """A Hugging Face folder, and a checkpoint of it that from-hf wrote."""
    folder, run = tmp_path / "model", tmp_path / "run"
    save_llama(folder)
    add_tokenizer(folder)
    assert convert.main(["from-hf", str(folder), str(run)]) == 0
    return folder, run


@pytest.mark.parametrize("command", ["to-hf", "merge", "check-server"])
@pytest.mark.parametrize(
    "config",
    [
        {"init_from": "/gone"},
        {"init_from": "/gone", "data": {"tokenizer": 3}},
        {"data": {"tokenizer": "/gone"}},
        "damaged",
        "tokenizer with too many tokens",
    ],
    ids=str,
)
def test_remedies_name_options_of_the_subcommand(command, config, models, tmp_path, caplog, capsys):
    folder, run = models
    for model in models:
        if config == "tokenizer with too many tokens":
            vocabulary = json.loads((model / "tokenizer.json").read_text())
            added = vocabulary["added_tokens"][0] | {"id": 128, "content": "<|more|>"}
            vocabulary["added_tokens"].append(added)
            (model / "tokenizer.json").write_text(json.dumps(vocabulary))
        else:
            (model / "tokenizer.json").unlink()
    if isinstance(config, dict):
        (run / "config.json").write_text(json.dumps(config))
    elif config == "damaged":
        (run / "config.json").write_text("{")
    arguments = {
        "to-hf": [str(run), str(tmp_path / "out")],
        "merge": [str(tmp_path / "out"), f"{run}=1"],
        "check-server": [str(folder), "http://localhost:1"],
    }
    try:
        convert.main([command, *arguments[command]])
        message = caplog.text
    except UserError as error:
        message = f"{caplog.text} {error}"
    assert "tokenizer" in message
    own = options_of(f"convert {command}", capsys)
    assert set(re.findall(OPTION, QUALIFIED.sub("", message))) <= own
    for names, option in QUALIFIED.findall(message):
        for name in re.split(", | and ", names):
            assert option in options_of(name, capsys), name
