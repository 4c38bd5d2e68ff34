"""Ids of rendered chats, compared with ``transformers`` for the layouts of many model families."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from llama_cpt.data.chat.conversations import Message
from llama_cpt.data.chat.template import ChatTemplate, find_chat_template
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.errors import UserError
from tests.data.json_tokenizers import BOS_EOS, CHATML, write_spaced_tokenizer, write_tokenizer

MESSAGES = [
    Message("user", " hi  there "),
    Message("assistant", "yes 你好"),
    Message("user", "a <think> b"),
    Message("assistant", "You  know. "),
]
TURNS = [{"role": one.role, "content": one.content} for one in MESSAGES]
TURN = "{% for m in messages %}{% if m['role'] == 'user' %}USER{% else %}ANSWER{% endif %}"
STYLES = {
    "llama2": (
        "{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}",
        "{{ ' ' + m['content'].strip() + ' ' + eos_token }}",
    ),
    "mistral": (
        "{{ '[INST] ' + m['content'] + ' [/INST]' }}",
        "{{ m['content'] + eos_token }}",
    ),
    "zephyr": (
        "{{ '<|user|>\n' + m['content'] + eos_token + '\n<|assistant|>\n' }}",
        "{{ m['content'] + eos_token + '\n' }}",
    ),
}


def style(name: str) -> str:
    """Return a template whose turns of the user end with the header of the answer."""
    user, answer = STYLES[name]
    return TURN.replace("USER", user).replace("ANSWER", answer) + "{% endfor %}"


def require_equal_ids(folder: Path) -> ChatTemplate:
    """Check that ids of prompts and conversations are those of ``transformers``."""
    template = find_chat_template(load_tokenizer(str(folder)))
    assert template is not None
    theirs: Any = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = theirs.apply_chat_template(TURNS[:3], add_generation_prompt=True, return_dict=False)
    assert template.prompt(MESSAGES[:3]) == prompt
    rendering = template.render(MESSAGES)
    assert rendering.tokens.tolist() == theirs.apply_chat_template(TURNS, return_dict=False)
    # The model is trained on answers after the prompts that chat gives it.
    assert prompt == rendering.tokens[: rendering.assistant_spans[-1][0]].tolist()
    return template


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("space", ["legacy", "always", "first", "bytes", "never"])
def test_no_space_is_added_inside_a_text(space, name, tmp_path):
    write_spaced_tokenizer(tmp_path, space, config={"chat_template": style(name)})
    require_equal_ids(tmp_path)


def test_space_is_not_added_after_a_token_that_a_prompt_shares(tmp_path):
    """The last space of the prompt and the first of the answer would be one token."""
    text = style("mistral").replace(" [/INST]", " [/INST] ").replace("{{ m['", "{{ ' ' + m['")
    write_spaced_tokenizer(tmp_path, "legacy", config={"chat_template": text})
    tokenizer = load_tokenizer(str(tmp_path))
    template = find_chat_template(tokenizer)
    assert template is not None
    rendering = template.render([Message("user", "h"), Message("assistant", "yes")])
    ((start, end),) = rendering.assistant_spans
    decoded = [tokenizer.decode([one]) for one in rendering.tokens[start:end].tolist()]
    assert decoded == [" y", "e", "s", "</s>"]


def test_special_tokens_can_remove_whitespace(tmp_path):
    """Phi-3's tokens of roles remove the whitespace after them."""
    special = [
        tokenizers.AddedToken(f"<|{name}|>", special=True, normalized=False, rstrip=True)
        for name in ("user", "assistant", "end")
    ]
    special.append(tokenizers.AddedToken("<mask>", special=True, normalized=False, lstrip=True))
    text = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + ' <mask><|end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    write_spaced_tokenizer(tmp_path, "legacy", config={"chat_template": text}, special=special)
    require_equal_ids(tmp_path)


def test_properties_of_added_tokens_in_the_config_take_precedence(tmp_path):
    def folder(name: str, **changes: Any) -> Path:
        flags = {"normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
        decoder = {"263": {"content": "<think>", "special": True} | flags | changes}
        config: dict[str, Any] = {"added_tokens_decoder": decoder, "chat_template": CHATML}
        return write_tokenizer(tmp_path / name, config=BOS_EOS | config, added=["<think>"])

    folders = [folder("a"), folder("b", special=False), folder("c", special=False, rstrip=True)]
    # In the first, the name in the message is ordinary text.
    for one in folders[1:]:
        require_equal_ids(one)
    ours = [load_tokenizer(str(one)) for one in folders]
    assert [one.special_id("<think>") for one in ours] == [263, None, None]
    assert ours[2].encode("<think> b") == ours[1].encode("<think>b")
    assert len({one.fingerprint for one in ours}) == 3
    # Tokens that are special in tokenizer.json can be ordinary text in the config.
    decoder = {"260": {"content": "<|eot_id|>", "special": False}}
    write_tokenizer(tmp_path / "d", config=BOS_EOS | {"added_tokens_decoder": decoder})
    changed = load_tokenizer(str(tmp_path / "d"))
    assert (changed.special_id("<|eot_id|>"), changed.encode("<|eot_id|>")) == (None, [260])


def test_fingerprint_depends_on_tokens_that_only_the_config_adds(tmp_path):
    found = set()
    for name in ("<tool>", "<code>"):
        decoder = {"263": {"content": name, "special": False}}
        write_tokenizer(tmp_path, config=BOS_EOS | {"added_tokens_decoder": decoder})
        found.add(load_tokenizer(str(tmp_path)).fingerprint)
    assert len(found) == 2


def test_added_tokens_file_and_names_in_other_fields(tmp_path):
    text = "{% for m in messages %}{{ image_token + m['content'] + sot + eos_token }}{% endfor %}"
    config = BOS_EOS | {"chat_template": text, "image_token": "<|im_start|>"}
    config |= {"extra_special_tokens": {"sot": "<sot>"}}
    write_tokenizer(tmp_path, config=config, added_tokens={"<sot>": 263, "<tool>": 264})
    require_equal_ids(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.special_id("<sot>"), tokenizer.encode("<tool>")) == (263, [264])
    (tmp_path / "added_tokens.json").write_text('{"<sot>": "263"}')
    with pytest.raises(UserError, match=r"added_tokens.json must map tokens to ids"):
        load_tokenizer(str(tmp_path))


def test_template_that_writes_an_absent_token_is_an_error(tmp_path):
    text = "{% for m in messages %}{{ m['content'] + '[SEP]' }}{% endfor %}"
    write_tokenizer(tmp_path, config=BOS_EOS | {"sep_token": "[SEP]", "chat_template": text})
    tokenizer = load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match=r"has no token '\[SEP\]', which its config names"):
        find_chat_template(tokenizer)


@pytest.mark.parametrize(
    ("end", "change", "found"),
    [
        ("</answer>\n<|im_end|>", "", ["<|im_end|>", "<|end_of_text|>"]),
        ("", "", ["<|end_of_text|>"]),
        ("<|im_end|>", " | upper", ["<|end_of_text|>"]),
    ],
)
def test_end_of_turn_can_follow_other_text(end, change, found, tmp_path):
    text = CHATML.replace("<|im_end|>", end).replace("m['content']", f"(m['content']{change})")
    write_tokenizer(tmp_path, config=BOS_EOS | {"chat_template": text})
    tokenizer = load_tokenizer(str(tmp_path))
    template = find_chat_template(tokenizer)
    assert template is not None
    assert [tokenizer.decode([one]) for one in template.stop_ids] == found


def test_lone_surrogates_are_encoded_as_in_tiktoken(tmp_path):
    text = CHATML.replace("<|im_end|>", "\\ud800<|im_end|>")
    write_tokenizer(tmp_path, config=BOS_EOS | {"chat_template": text})
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.decode(tokenizer.encode("a\ud800b\ud83d\ude00")) == "a\ufffdb\U0001f600"
    template = find_chat_template(tokenizer)
    assert template is not None
    assert tokenizer.decode(template.prompt([Message("user", "\ud800")])).count("\ufffd") == 2


def test_templates_by_name(tmp_path):
    named = {"default": CHATML, "tool_use": "x"}
    for value in (named, [{"name": key, "template": named[key]} for key in named]):
        write_tokenizer(tmp_path, config=BOS_EOS | {"chat_template": value})
        require_equal_ids(tmp_path)


def test_bos_is_found_if_the_normalizer_removes_the_probe(tmp_path):
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    values = json.loads(file.read_text("utf-8"))
    values["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": ""}
    file.write_text(json.dumps(values), encoding="utf-8")
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.text_prefix == (tokenizer.bos_id,)
