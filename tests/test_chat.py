"""Tests of the chat command and of a chat session."""

import json
import os
from pathlib import Path
import subprocess
import sys

import jax
import numpy as np
import pytest
import sentencepiece

from llama_cpt import chat
from llama_cpt.config.schema import MeshConfig
from llama_cpt.data.chat.conversations import Message
from llama_cpt.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from llama_cpt.generation.chat_session import ChatSession, find_chat_template, stream_text
from llama_cpt.generation.decoder import make_decoder
from llama_cpt.generation.sampling import Sampling
from llama_cpt.model.llama import Llama
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.errors import USER_ERROR, UserError
from llama_cpt.weights.hf_config import config_json
from llama_cpt.weights.hf_names import BY_OURS, parameters_by_path
from llama_cpt.weights.safetensors import file_header
from llama_cpt.weights.source import open_source
from tests.byte_tokenizer import write_byte_tokenizer
from tests.conftest import ROOT
from tests.tiny_run import tiny_model


def write_tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(str(write_byte_tokenizer(folder)))


@pytest.fixture(scope="module")
def session_parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = write_tokenizer(folder)
    config = tiny_model(tokenizer.vocab_size)
    model = Llama(config, jax.random.key(0))
    return folder, tokenizer, model


@pytest.fixture
def session(session_parts) -> ChatSession:
    _, tokenizer, model = session_parts
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    template = find_chat_template(tokenizer)
    return ChatSession(
        make_decoder(model, mesh), tokenizer, template, mesh, Sampling(1.0, seed=3), 16
    )


def test_tokenizer_without_chat_tokens_has_no_template(session_parts, corpora_tokenizer):
    template = find_chat_template(session_parts[1])
    assert template is not None and template.fingerprint == "llama3"
    assert find_chat_template(corpora_tokenizer) is None


@pytest.fixture
def corpora_tokenizer(tmp_path) -> Tokenizer:
    """A SentencePiece tokenizer with BOS and EOS as its only special tokens."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f g"] * 20),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
    )
    return load_tokenizer(str(tmp_path / "tokenizer.model"))


def test_streamed_pieces_hold_whole_characters_and_no_special_tokens(session_parts):
    _, tokenizer, _ = session_parts
    ids = [*tokenizer.encode("a你🙂b"), tokenizer.special_id("<|python_tag|>")]
    pieces = list(stream_text(tokenizer, iter([[one] for one in ids])))
    assert pieces == ["a", "你", "🙂", "b"]
    cut = list(stream_text(tokenizer, iter([tokenizer.encode("a你")[:-1]])))
    assert cut == ["a", "\N{REPLACEMENT CHARACTER}"]


def test_reset_keeps_only_the_system_message(session):
    session.set_system("Be brief.")
    answer = "".join(session.reply("hi"))
    assert [m.role for m in session.messages] == ["system", "user", "assistant"]
    assert session.messages[2].content == answer
    session.reset()
    assert session.messages == [Message("system", "Be brief.")]
    assert "".join(session.reply("hi")) == answer


def test_interrupted_answer_is_kept(session):
    answer = session.reply("hi")
    first = next(answer)
    answer.close()
    assert session.messages[-1] == Message("assistant", first)


def test_oldest_turns_are_dropped_when_the_context_is_full(session):
    session.set_system("S")
    for text in ("one", "two", "three", "four"):
        "".join(session.reply(text))
    assert session.dropped in (4, 6)
    assert len(session.messages) == 9
    before = list(session.messages)
    with pytest.raises(UserError, match="in the model's context of 128"):
        next(session.reply("x" * 200))
    assert session.messages == before


def talk(model: str, lines: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "llama_cpt.chat", model, "--max-new-tokens", "9", *options],
        input=lines,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONIOENCODING": "utf-8"},
        timeout=300,
    )


@pytest.fixture(scope="module")
def hf_folder(session_parts) -> Path:
    """The folder of the test model in Hugging Face format."""
    folder, tokenizer, model = session_parts
    values = config_json(model.config, "float32", bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
    (folder / "config.json").write_text(json.dumps(values))
    tensors = {}
    for ours, parameter in parameters_by_path(model).items():
        name, array = BY_OURS[ours], np.asarray(parameter[...], "<f4")
        for layer, part in enumerate(array if name.stacked else [array]):
            tensors[name.tensor(layer)] = np.ascontiguousarray(part.T if name.transposed else part)
    header = file_header([(name, array.dtype, array.shape) for name, array in tensors.items()])
    content = header + b"".join(array.tobytes() for array in tensors.values())
    (folder / "model.safetensors").write_bytes(content)
    return folder


def test_chat_answers_lines_from_a_pipe(hf_folder, tmp_path, session):
    saved = tmp_path / "talk.json"
    lines = f"/system Be kind.\nhi\n/save {saved}\n/nonsense\n/exit\nnever read\n"
    result = talk(str(hf_folder), lines, "--temperature", "1", "--top-p", "1", "--seed", "3")
    assert result.returncode == 0, result.stderr
    messages = json.loads(saved.read_text(encoding="utf-8"))["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    assert result.stdout == messages[2]["content"] + "\n"
    assert "no command /nonsense" in result.stderr and "<|" not in result.stdout
    session.max_new_tokens = 9
    session.set_system("Be kind.")
    assert "".join(session.reply("hi")) == messages[2]["content"]


def test_missing_model_is_a_one_line_error(tmp_path):
    result = talk(str(tmp_path / "nothing"), "")
    assert result.returncode == USER_ERROR
    assert result.stderr == f"error: {tmp_path / 'nothing'}: no such folder.\n"


def test_missing_tokenizer_error_names_the_option(hf_folder, tmp_path):
    (tmp_path / "config.json").write_text((hf_folder / "config.json").read_text())
    source = open_source(str(tmp_path))
    assert source.architecture.num_layers == 1
    with pytest.raises(UserError, match="--tokenizer"):
        _ = source.tokenizer


def test_control_characters_are_removed_for_the_terminal():
    assert chat._visible("a\x1b[2J\x9b\r\nb\t\N{ZERO WIDTH JOINER}") == (
        "a[2J\nb\t\N{ZERO WIDTH JOINER}"
    )
