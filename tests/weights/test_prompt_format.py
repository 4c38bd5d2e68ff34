"""The prompt format of a run: the tokenizer and template of training, everywhere."""

from collections.abc import Callable
from dataclasses import replace
import json
from pathlib import Path
import shutil
from typing import Any

import numpy as np
import pytest
import transformers

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.run_folder import CHECKPOINTS_FOLDER
from llama_cpt.config.fields import to_dict
from llama_cpt.config.loading import save_config
from llama_cpt.config.schema import (
    ChatConfig,
    CorpusConfig,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)
from llama_cpt.data.chat.conversations import Message
from llama_cpt.data.chat.template import LLAMA3_JINJA, load_chat_template
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.errors import UserError
from llama_cpt.training.attempt import checkpoint_metadata
from llama_cpt.weights.export import to_hf
from llama_cpt.weights.hf_weights import load_hf
from llama_cpt.weights.prompt_format import prompt_format
from llama_cpt.weights.source import open_source
from tests.data.json_tokenizers import BOS_EOS, CHATML, write_tokenizer
from tests.runs import run_of
from tests.weights.hf_models import save_llama

TURNS = [Message("user", "Is it?"), Message("assistant", "yes"), Message("user", "or <|eot_id|>")]
MINE = CHATML.replace("<|im_end|>", "!<|im_end|>")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_llama(folder, vocab_size=272, num_hidden_layers=1, bos_token_id=256, eos_token_id=[257])
    generation = {"eos_token_id": [257, 270], "temperature": 0.25, "top_k": 7, "pad_token_id": 269}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 269}))
    write_tokenizer(folder, config=BOS_EOS | {"chat_template": CHATML})
    return folder


@pytest.fixture
def make_run(base, tmp_path) -> Callable[..., str]:
    """A function that writes a run folder, trained on chats unless ``chat`` is None."""

    def make(tokenizer: Path, chat: ChatConfig | None, **metadata: Any) -> str:
        model = load_hf(str(base))
        folder = tmp_path / "run"
        config = TrainConfig(
            output=str(folder),
            model=open_source(str(base)).architecture,
            data=DataConfig(
                tokenizer=str(tokenizer),
                prepared="rows",
                sequence_length=16,
                almr=0.0,
                original=(CorpusConfig("en", "en.jsonl"),),
                chat=chat,
            ),
            optimizer=OptimizerConfig(1e-3),
            num_steps=4,
            global_batch_size=8,
            init_from=str(base),
        )
        folder.mkdir()
        save_config(config, folder / "config.json")
        loaded = load_tokenizer(str(tokenizer))
        template = load_chat_template(loaded, chat.template).fingerprint if chat else None
        recorded = {"tokenizer": loaded.fingerprint, "template": template}
        values = {"step": 4, "rows_consumed": 32, "config": to_dict(config), "fingerprints": {}}
        values |= {"prompt_format": recorded} | metadata
        with CheckpointManager(str(folder / CHECKPOINTS_FOLDER)) as checkpoints:
            state = {"trained": model, "opt_state": {"mu": np.ones(3)}}
            checkpoints.save(4, state, {k: v for k, v in values.items() if v is not None})
        return str(folder)

    return make


def json_file(folder: Path) -> Path:
    """A ``tokenizer.json`` that the config names as a file, with its template next to it."""
    return write_tokenizer(folder, config=BOS_EOS | {"chat_template": MINE}) / "tokenizer.json"


def template_file(folder: Path) -> Path:
    """A folder whose ``chat_template.jinja`` takes precedence over ``tokenizer_config.json``."""
    write_tokenizer(folder, config=BOS_EOS | {"chat_template": CHATML})
    (folder / "chat_template.jinja").write_text(MINE, encoding="utf-8")
    return folder


def original(folder: Path, shared: Path) -> Path:
    """Meta's ``original/tokenizer.model``, with the template in the folder above."""
    (folder / "original").mkdir(parents=True)
    content = (shared / "tokenizer/llama3/tokenizer.model").read_bytes()
    (folder / "original" / "tokenizer.model").write_bytes(content)
    names = {"im_start": "start_header_id", "im_end": "eot_id"}
    text = MINE
    for ours, theirs in names.items():
        text = text.replace(ours, theirs)
    (folder / "chat_template.jinja").write_text(text, "utf-8")
    return folder / "original" / "tokenizer.model"


@pytest.mark.parametrize("kind", [json_file, template_file])
@pytest.mark.parametrize("choice", ["auto", "llama3"])
def test_export_chat_and_evaluation_use_the_template_of_training(kind, choice, make_run, tmp_path):
    tokenizer = kind(tmp_path / "tokenizer")
    run = make_run(tokenizer, ChatConfig(template=choice))
    trained = load_chat_template(load_tokenizer(str(tokenizer)), choice)
    expected = trained.prompt(TURNS)
    assert trained.source == (LLAMA3_JINJA if choice == "llama3" else MINE)
    used = prompt_format(open_source(run))
    assert used.template is not None and used.template.prompt(TURNS) == expected
    to_hf(run, str(tmp_path / "out"), dtype="float32")
    exported = prompt_format(open_source(str(tmp_path / "out")))
    assert exported.template is not None and exported.template.prompt(TURNS) == expected
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    turns = [{"role": turn.role, "content": turn.content} for turn in TURNS]
    text = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    plain = trained.prompt_text(TURNS).replace("\ufdd0", "").replace("\ufdd1", "")
    assert text == plain


def test_settings_of_the_base_model_survive_the_export(base, make_run, tmp_path):
    run = make_run(base, ChatConfig())
    used = prompt_format(open_source(run))
    assert used.stop_ids == (262, 257, 270)
    assert prompt_format(open_source(str(base))).stop_ids == (262, 257, 270)
    to_hf(run, str(tmp_path / "out"), dtype="float32")
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation == {
        "eos_token_id": [257, 270, 262],
        "temperature": 0.25,
        "top_k": 7,
        "pad_token_id": 269,
    }
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["eos_token_id"] == [257, 262, 270] and config["pad_token_id"] == 269
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert theirs.eos_token_id == [257, 270, 262] and theirs.pad_token_id == 269


def test_run_stores_the_settings_of_its_base_model(base, tmp_path):
    """A run is used after its base model was moved."""
    init = shutil.copytree(base, tmp_path / "base")
    (tmp_path / "en.jsonl").write_text(json.dumps({"text": "one and two, " * 30}) + "\n")
    config = TrainConfig(
        output=str(tmp_path / "run"),
        model=open_source(str(init)).architecture,
        data=DataConfig(
            tokenizer=str(base),
            prepared=str(tmp_path / "rows"),
            sequence_length=16,
            almr=0.0,
            original=(CorpusConfig("en", str(tmp_path / "en.jsonl")),),
        ),
        optimizer=OptimizerConfig(1e-3),
        num_steps=1,
        global_batch_size=1,
        mesh=MeshConfig(1, 1, 1),
        init_from=str(init),
    )
    run = run_of(config)
    metadata = checkpoint_metadata(run, run.start(), 0)
    (tmp_path / "run").mkdir()
    save_config(config, tmp_path / "run/config.json")
    with CheckpointManager(str(tmp_path / "run" / CHECKPOINTS_FOLDER)) as checkpoints:
        checkpoints.save(0, {"trained": load_hf(str(init)), "opt_state": {}}, metadata)
    shutil.rmtree(init)
    used = prompt_format(open_source(config.output))
    assert used.stop_ids == (262, 257, 270)
    assert used.generation["temperature"] == 0.25
    assert run.resumed({"prompt_format": {"generation": {"top_k": 3}}}).generation == {"top_k": 3}
    to_hf(config.output, str(tmp_path / "out"), dtype="float32")
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (theirs.eos_token_id, theirs.temperature) == ([257, 270], 0.25)


def test_other_tokenizer_or_template_is_an_error(base, make_run, tmp_path):
    trained = write_tokenizer(tmp_path / "t", config=BOS_EOS | {"chat_template": CHATML})
    run = make_run(trained, ChatConfig())
    other = write_tokenizer(tmp_path / "other", config=BOS_EOS | {"eos_token": "<|eot_id|>"})
    with pytest.raises(UserError, match="is not the tokenizer with which .*run was trained"):
        prompt_format(open_source(run), str(other))
    write_tokenizer(trained, config=BOS_EOS | {"chat_template": MINE})
    with pytest.raises(UserError, match="the chat template of .* is not the template with which"):
        prompt_format(open_source(run))
    with pytest.raises(UserError, match="is not the template"):
        to_hf(run, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_checkpoints_of_earlier_versions_name_the_vocabulary(base, make_run, tmp_path):
    digest = load_tokenizer(str(base)).content_digest
    corpora = {"data": {"en": f"{digest} 16 4 x"}, "heldout": {}}
    run = make_run(base, None, prompt_format=None, fingerprints=corpora)
    assert prompt_format(open_source(run)).tokenizer.content_digest == digest
    other = write_tokenizer(tmp_path / "other", added=("<think>",))
    with pytest.raises(UserError, match="is not the tokenizer"):
        prompt_format(open_source(run), str(other))


def test_original_vocabulary_keeps_the_template_above_it(shared_data, tmp_path):
    tokenizer = load_tokenizer(str(original(tmp_path, shared_data)))
    template = load_chat_template(tokenizer, "auto")
    assert template.source == (tmp_path / "chat_template.jinja").read_text("utf-8")
    assert template.prompt(TURNS)[0] == tokenizer.special_id("<|start_header_id|>")


def test_padded_vocabulary_is_accepted_and_a_larger_one_is_not(base, make_run, tmp_path):
    assert load_tokenizer(str(base)).vocab_size == 263
    many = write_tokenizer(tmp_path / "many", added=[f"<{n}>" for n in range(10)])
    with pytest.raises(UserError, match="has 273 tokens, but model.vocab_size is 272"):
        prompt_format(open_source(str(base)), str(many))
    assert replace(prompt_format(open_source(str(base))), template=None).stop_ids == (257, 270)


@pytest.mark.parametrize("eos", ["258", ["258"], True, 258.0, [[258]], {"id": 258}, -2, 1 << 40])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_unusable_end_tokens_are_errors(name, eos, tmp_path):
    """Otherwise, answers would not end at the token that the field means."""
    save_llama(tmp_path, vocab_size=272, num_hidden_layers=1)
    write_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text("{}")
    file = tmp_path / name
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": eos}))
    with pytest.raises(UserError, match=rf"{name}: eos_token_id=.* must be the id of a token"):
        prompt_format(open_source(str(tmp_path)))


@pytest.mark.parametrize("eos", [None, [], -1, [-1], [None]])
def test_absent_end_tokens_are_accepted(eos, base, tmp_path):
    copy = shutil.copytree(base, tmp_path / "copy")
    file = copy / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": eos}))
    config = json.loads((copy / "config.json").read_text()) | {"eos_token_id": 270}
    (copy / "config.json").write_text(json.dumps(config))
    assert prompt_format(open_source(str(copy))).stop_ids == (262, 257, 270)
