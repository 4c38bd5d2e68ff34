"""The settings next to a ``tokenizer.json``, compared with ``transformers``."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from llama_cpt.data.chat.conversations import Message
from llama_cpt.data.chat.template import find_chat_template, load_chat_template
from llama_cpt.data.tokenizer.document_tokens import document_tokens
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.errors import UserError
from tests.data.json_tokenizers import BOS_EOS, CHATML, SPECIAL, write_tokenizer

TEXTS = ("hello 你好 <think>x</think>", "<|end_of_text|>你好 <|im_start|>", "", "<pad>\n a")
EOS_ONLY = {"bos_token": None, "eos_token": "<|end_of_text|>"}
SAME = {"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>"}
PAD = BOS_EOS | {"pad_token": "<|eot_id|>", "additional_special_tokens": ["<|im_end|>"]}


@pytest.mark.parametrize(
    ("config", "prefix", "added"),
    [
        *itertools.product(
            (BOS_EOS, EOS_ONLY, SAME, PAD, BOS_EOS | {"add_bos_token": False}),
            ("", "<|begin_of_text|>"),
            ((), ("你好", "<think>", "</think>")),
        ),
        (BOS_EOS, "<|im_start|>", ()),
    ],
)
def test_ids_and_names_equal_those_of_transformers(config, prefix, added, tmp_path):
    write_tokenizer(tmp_path, config=config, prefix=prefix, added=added)
    ours = load_tokenizer(str(tmp_path))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        expected = theirs.encode(text, split_special_tokens=True)
        assert [*ours.text_prefix, *ours.encode(text)] == expected
        assert ours.decode(ours.encode(text)) == text
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == len(theirs)
    assert ours.has_added_text == bool(added)
    names = {k: v for k, v in theirs.special_tokens_map.items() if isinstance(v, str)}
    assert ours.names == names
    assert not {ours.special_id(name) for name in added} - {None}


def test_config_can_add_bos_but_not_remove_it(tmp_path):
    """Version 5 of ``transformers`` reads ``add_bos_token`` only without a ``tokenizer.json``."""
    write_tokenizer(tmp_path, config=BOS_EOS | {"add_bos_token": True}, prefix="")
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.text_prefix == (tokenizer.bos_id,)


def test_other_files_name_special_tokens(tmp_path):
    names = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    folder = write_tokenizer(tmp_path / "map", config={}, prefix="", special_tokens_map=names)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.names == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    decoder = {
        "263": {"content": "<tool>", "special": False},
        "264": {"content": "[PAD]", "special": True},
    }
    config: dict[str, Any] = BOS_EOS | {"pad_token": "[PAD]", "added_tokens_decoder": decoder}
    folder = write_tokenizer(tmp_path / "decoder", config=config)
    ours, theirs = load_tokenizer(str(folder)), transformers.AutoTokenizer.from_pretrained(folder)
    text = "a<tool>b[PAD]"
    assert ours.encode(text) == theirs.encode(text, split_special_tokens=True)[1:]
    assert ours.encode("<tool>") == [263] and ours.special_id("[PAD]") == 264
    assert ours.vocab_size == len(theirs) == 265
    config["added_tokens_decoder"] = {"270": {"content": "<tool>"}}
    write_tokenizer(folder, config=config)
    with pytest.raises(UserError, match="'<tool>' has id 263, but tokenizer_config.json gives"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"bos_token": "<|be', "not JSON"),
        (b"[1, 2]", "must be a JSON object"),
        (b"[" * 100_000, "nested more than"),
        (b'{"a":' * 100_000, "nested more than"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"eos_token": 3}', "eos_token must be the name of a token"),
        (b'{"eos_token": {"special": true}}', "eos_token must be the name of a token"),
        (b'{"eos_token": "<none>"}', "has no token '<none>', which its config names as eos_token"),
        (b'{"add_bos_token": 1}', "add_bos_token must be true, false or null"),
        (b'{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder must map ids to tokens"),
        (b'{"added_tokens_decoder": [1]}', "added_tokens_decoder must map ids to tokens"),
        (b'{"additional_special_tokens": "x"}', "must be a list of tokens"),
    ],
)
def test_bad_settings_are_errors(tmp_path, content, message):
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(tmp_path))


def _replace_chain(count: int) -> dict[str, Any]:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return {"type": "Sequence", "normalizers": [step] * count}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": _replace_chain(40)}, "can make a text 1.1e.12 times as long"),
        ({"decoder": {"type": "Sequence", "decoders": _replace_chain(9)["normalizers"]}}, "512"),
        (
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}},
            "not a tokenizer.json",
        ),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "not a tokenizer.json"),
        # The library panics.
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "not a token"),
    ],
)
def test_tokenizers_that_take_unbounded_time_are_errors(tmp_path, change, message):
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    values = json.loads(file.read_text("utf-8")) | change
    file.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(tmp_path))


def test_fingerprint_depends_on_everything_that_decides_tokens(tmp_path):
    def fingerprint(name: str, change: dict[str, Any] | None = None, **settings: Any) -> str:
        file = write_tokenizer(tmp_path / name, **settings) / "tokenizer.json"
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | (change or {})), "utf-8")
        return load_tokenizer(str(file)).fingerprint

    found = [
        fingerprint("plain"),
        fingerprint("eos", config=SAME),
        fingerprint("pad", config=PAD),
        fingerprint("no_bos", config=EOS_ONLY),
        fingerprint("processor", prefix=""),
        fingerprint("added", added=("<think>",)),
        fingerprint("normalizer", {"normalizer": {"type": "Lowercase"}}),
    ]
    assert len(set(found)) == len(found)
    assert fingerprint("again") == found[0]


def test_template_sees_the_names_of_special_tokens(tmp_path):
    text = (
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ pad_token }}"
        "{{ unk_token if unk_token is defined else '-' }}{{ eos_token }}{% endfor %}"
    )
    write_tokenizer(tmp_path, config=PAD | {"chat_template": text})
    tokenizer = load_tokenizer(str(tmp_path))
    template = load_chat_template(tokenizer, "auto")
    turns = [Message("user", "q"), Message("assistant", "a")]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in turns], return_dict=False
    )
    assert template.render(turns).tokens.tolist() == expected
    assert template.stop_ids == (tokenizer.special_id("<|eot_id|>"), tokenizer.eos_id)


def test_thinking_template_gives_prompts(tmp_path):
    """The template cannot be used for training, but for prompts."""
    text = CHATML.replace("assistant\n'", "assistant\n<think>\n'")
    write_tokenizer(tmp_path, config=BOS_EOS | {"chat_template": text}, added=("<think>",))
    tokenizer = load_tokenizer(str(tmp_path))
    template = find_chat_template(tokenizer)
    assert template is not None
    prompt = template.prompt([Message("user", "q")])
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n<think>\n")
    assert prompt[-2] == tokenizer.encode("<think>")[0]
    assert template.stop_ids == (tokenizer.special_id("<|im_end|>"), tokenizer.eos_id)
    with pytest.raises(UserError, match="depends on later turns"):
        load_chat_template(tokenizer, "auto")


def test_document_tokens(tmp_path, shared_data: Path):
    llama3 = load_tokenizer(str(shared_data / "tokenizer/llama3"))
    assert document_tokens(llama3, None) == ((128000,), 128001)
    tokenizer = load_tokenizer(str(write_tokenizer(tmp_path, prefix="")))
    begin, end = (tokenizer.special_id(name) for name in SPECIAL[:2])
    assert document_tokens(tokenizer, None) == ((), end)
    assert document_tokens(tokenizer, None).for_heldout == ((end,), end)
    assert document_tokens(tokenizer, (SPECIAL[0], SPECIAL[4])) == ((begin,), 260)
    assert document_tokens(tokenizer, ("", SPECIAL[4])) == ((), 260)
    for names in (("<x>", SPECIAL[1]), (SPECIAL[0], "")):
        with pytest.raises(UserError, match="data.document_tokens: '.*' is not a special token"):
            document_tokens(tokenizer, names)
