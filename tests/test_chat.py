"""Tests of the chat command and of a chat session."""

import io
import json
import os
from pathlib import Path
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
import sentencepiece

from llama_cpt import chat
from llama_cpt.config.schema import MeshConfig
from llama_cpt.data.chat.conversations import Message
from llama_cpt.data.chat.template import find_chat_template
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.generation.chat_session import ChatSession, stream_text
from llama_cpt.generation.decoder import make_decoder
from llama_cpt.generation.sampling import Sampling
from llama_cpt.model.llama import Llama
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.errors import USER_ERROR, UserError
from llama_cpt.runtime.untrusted_text import printable
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


class CountingTokenizer:
    """A byte-level tokenizer that counts the tokens that it decodes."""

    special_tokens: dict[str, int] = {}
    bos_id = eos_id = -1
    decoded = 0

    def decode(self, ids):
        self.decoded += len(ids)
        return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize("size", [1, 3, 8])
def test_work_to_stream_an_answer_is_linear(size):
    for content in ("ab你🙂é".encode() * 1000, b"\xf0\x9f" * 4000, b"ok" * 50 + b"\xff" * 4000):
        tokenizer: Any = CountingTokenizer()
        batches = (list(content[at : at + size]) for at in range(0, len(content), size))
        streamed = "".join(stream_text(tokenizer, batches))
        if b"ab" in content:
            assert streamed == content.decode()
            assert tokenizer.decoded < 40 * len(content)
        assert streamed.startswith(content.decode(errors="replace")[:100])
        assert tokenizer.decoded < 300 * len(content)


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
    values = config_json(model.config, "float32", {"eos_token_id": tokenizer.eos_id})
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


@pytest.mark.slow
def test_chat_answers_lines_from_a_pipe(hf_folder, tmp_path, session):
    saved = tmp_path / "talk.json"
    lines = f"/system Be kind.\nhi\n/save {saved}\n/non\x1b[31msense\n/exit\nnever read\n"
    result = talk(str(hf_folder), lines, "--temperature", "1", "--top-p", "1", "--seed", "3")
    assert result.returncode == 0, result.stderr
    assert not saved.exists() and "/save works only at a terminal" in result.stderr
    assert "no command /non[31msense" in result.stderr and "<|" not in result.stdout
    session.max_new_tokens = 9
    session.set_system("Be kind.")
    assert printable("".join(session.reply("hi"))) + "\n" == result.stdout


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


def test_control_characters_of_answers_are_removed_in_all_parts(capsys, monkeypatch, session):
    attack = ["a\x1b", "[2J\x9b", "\r", "\nb\u202e\t\N{ZERO WIDTH JOINER}"]
    monkeypatch.setattr(ChatSession, "reply", lambda self, line: iter(attack))
    chat._answer(session, "hi")
    assert capsys.readouterr().out == "a[2J\nb\t\N{ZERO WIDTH JOINER}\n"


def test_save_writes_only_new_files_and_only_at_a_terminal(session, tmp_path, monkeypatch, capsys):
    session.messages = [Message("user", "hi\u2028")]
    file, link = tmp_path / "talk.json", tmp_path / "link.json"
    link.symlink_to(tmp_path / "absent")
    with pytest.raises(UserError, match="only at a terminal"):
        chat._run_command(session, f"/save {file}")
    monkeypatch.setattr(sys, "stdin", Terminal())
    chat._run_command(session, f"/save {file}")
    assert json.loads(file.read_text("utf-8"))["messages"] == [
        {"role": "user", "content": "hi\u2028"}
    ]
    for path in (file, link):
        with pytest.raises(UserError, match=f"{path} exists; choose another name"):
            chat._run_command(session, f"/save {path}")
    assert "1 messages written" in capsys.readouterr().err and not (tmp_path / "absent").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True
