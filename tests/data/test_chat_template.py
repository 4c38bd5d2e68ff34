"""Chat templates: golden renderings, spans in real chats, comparison with ``transformers``."""

import json
from pathlib import Path
import re

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from examples.bilingual_world.vocabulary import train_vocabulary
from llama_cpt.data.chat.conversations import InvalidRecordError, Message
from llama_cpt.data.chat.template import LLAMA3_JINJA, find_template, load_chat_template
from llama_cpt.data.tokenizer.tokenizer import LLAMA3_PATTERN, load_tokenizer
from llama_cpt.runtime.errors import UserError
from tests.byte_tokenizer import write_byte_tokenizer
from tests.real_chats import real_chats

# Llama 3's chat template, as in its tokenizer_config.json.
MARKED_JINJA = (
    "{{ bos_token }}\n{%- for message in messages %}\n"
    "    {%- if message.role == 'assistant' %}\n"
    "<|start_header_id|>A<|end_header_id|>{% generation %}{{ message.content }}<|eot_id|>"
    "{% endgeneration %}\n"
    "    {%- else %}\n{{ message.role | upper }}: {{ message.content | tojson }}\n"
    "    {%- endif %}\n{%- endfor %}"
    "{%- if add_generation_prompt %}<|start_header_id|>A<|end_header_id|>{% endif %}"
)
LINES_JINJA = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + '<|eot_id|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TALK = (
    Message("system", "  be <|eot_id|> kind"),
    Message("user", "\n\nhello <|begin_of_text|>"),
    Message("assistant", " hi \n"),
    Message("user", "ok?"),
    Message("assistant", "(yes) <|eot_id|>"),
)


@pytest.fixture(scope="session")
def byte_folder(tmp_path_factory):
    return write_byte_tokenizer(tmp_path_factory.mktemp("bytes")).parent


@pytest.fixture(scope="session")
def llama3(shared_data):
    return load_tokenizer(str(shared_data / "tokenizer/llama3"))


def with_template(folder: Path, tmp_path: Path, template):
    """Return the tokenizer of ``folder``, copied to ``tmp_path`` next to ``template``."""
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    config = {"chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return load_tokenizer(str(tmp_path))


def messages_of(values):
    return [Message(value["role"], value["content"]) for value in values]


def with_special_parsed(tokenizer):
    """Return a function that encodes text with tiktoken, including special tokens."""
    import tiktoken

    encoding = tiktoken.Encoding(
        "oracle",
        pat_str=LLAMA3_PATTERN,
        mergeable_ranks=tokenizer.ranks,
        special_tokens=tokenizer.special_tokens,
    )
    return lambda text: encoding.encode(text, allowed_special="all")


def assistant_texts(template, tokenizer, messages):
    """Return the decoded tokens of each assistant turn in ``messages``."""
    rendering = template.render(messages)
    return [tokenizer.decode(rendering.tokens[a:b].tolist()) for a, b in rendering.assistant_spans]


def test_golden_renderings(llama3, shared_data):
    golden = json.loads((shared_data / "chat_template/golden_rendered.json").read_text("utf-8"))
    template, parsed = load_chat_template(llama3, "llama3"), with_special_parsed(llama3)
    assert len(golden) == 8
    for case in golden:
        messages = messages_of(case["messages"])
        if case["add_generation_prompt"]:
            ids = template.prompt(messages)
        else:
            ids = template.render(messages).tokens.tolist()
        assert llama3.decode(ids) == case["rendered"]
        assert ids == parsed(case["rendered"])
        assert ids.count(llama3.bos_id) == 1


@pytest.mark.parametrize(
    ("every", "count"), [(20, 451), pytest.param(1, 8972, marks=pytest.mark.slow)]
)
def test_real_chats(llama3, shared_data, every, count):
    """The ids are tiktoken's for the rendered text; spans cover only answers and end tokens."""
    template, parsed = load_chat_template(llama3, "auto"), with_special_parsed(llama3)
    seen = 0
    for chat in real_chats(shared_data, every):
        messages = chat.messages
        rendering = template.render(messages)
        answers = [m.content.strip() for m in messages if m.role == "assistant"]
        spoken = [rendering.tokens[a:b].tolist() for a, b in rendering.assistant_spans]
        assert spoken == [parsed(f"{answer}<|eot_id|>") for answer in answers]
        turns = [
            f"<|start_header_id|>{m.role}<|end_header_id|>\n\n{m.content.strip()}<|eot_id|>"
            for m in messages
        ]
        assert rendering.tokens.tolist() == parsed("<|begin_of_text|>" + "".join(turns))
        seen += 1
    assert seen == count


TEXTS = st.lists(
    st.sampled_from(["<|eot_id|>", "<|begin_of_text|>", "<|end", "|>", " ", "\n", "a", "中", "<"])
).map("".join)


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(TEXTS.filter(str.strip), min_size=2, max_size=5))
@pytest.mark.parametrize("jinja", [False, True])
def test_text_never_becomes_special(byte_folder, tmp_path_factory, jinja, texts):
    if jinja:
        folder = tmp_path_factory.mktemp("jinja")
        tokenizer = with_template(byte_folder, folder, LLAMA3_JINJA)
    else:
        tokenizer = load_tokenizer(str(byte_folder))
    template = load_chat_template(tokenizer, "auto")
    roles = ("user", "assistant") * 3
    messages = [Message(role, text) for role, text in zip(roles, texts, strict=False)]
    rendering = template.render(messages)
    ids = rendering.tokens.tolist()
    assert [i for i in ids if i >= 256] == [
        tokenizer.special_id(name)
        for name in ["<|begin_of_text|>"]
        + ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"] * len(messages)
    ]
    np.testing.assert_array_equal(rendering.special, rendering.tokens >= 256)
    answers = [f"{m.content.strip()}<|eot_id|>" for m in messages if m.role == "assistant"]
    assert assistant_texts(template, tokenizer, messages) == answers
    if len(messages) % 2:
        start = rendering.assistant_spans[-1][1] if rendering.assistant_spans else 0
        assert template.prompt(messages)[start : len(ids)] == ids[start:]


@pytest.mark.parametrize("jinja", [LLAMA3_JINJA, MARKED_JINJA, LINES_JINJA])
def test_jinja_renders_as_transformers(byte_folder, tmp_path, jinja):
    templates = pytest.importorskip("transformers.utils.chat_template_utils")
    tokenizer = with_template(byte_folder, tmp_path, jinja)
    template = load_chat_template(tokenizer, "auto")
    chat = [{"role": m.role, "content": m.content} for m in TALK]
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    for end, prompting in ((5, False), (4, True)):
        (expected,), spans = templates.render_jinja_template(
            [chat[:end]],
            chat_template=jinja,
            add_generation_prompt=prompting,
            return_assistant_tokens_mask="generation %" in jinja,
            **names,
        )
        if prompting:
            ids = template.prompt(TALK[:end])
        else:
            ids = template.render(TALK[:end]).tokens.tolist()
            if spans:
                texts = [expected[a:b] for a, b in spans[0]]
                assert assistant_texts(template, tokenizer, TALK[:end]) == texts
        assert tokenizer.decode(ids) == expected


def test_llama3_in_jinja_equals_llama3(llama3, byte_folder, tmp_path):
    tokenizer = with_template(byte_folder, tmp_path, LLAMA3_JINJA)
    ours, theirs = (load_chat_template(tokenizer, choice) for choice in ("llama3", "auto"))
    assert ours.fingerprint == "llama3" and re.fullmatch("[0-9a-f]{64}", theirs.fingerprint)
    one, other = ours.render(TALK), theirs.render(TALK)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    assert one.assistant_spans == other.assistant_spans


def test_line_break_after_the_end_token_is_not_in_the_span(byte_folder, tmp_path):
    tokenizer = with_template(byte_folder, tmp_path, LINES_JINJA)
    template = load_chat_template(tokenizer, "auto")
    assert assistant_texts(template, tokenizer, TALK) == [
        " hi \n<|eot_id|>",
        "(yes) <|eot_id|><|eot_id|>",
    ]


def test_template_is_found_next_to_the_vocabulary(byte_folder, tmp_path):
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": LINES_JINJA}]
    tokenizer = with_template(byte_folder, tmp_path, named)
    assert find_template(tokenizer.path) == LINES_JINJA
    (tmp_path / "original").mkdir()
    inner = tmp_path / "original" / "tokenizer.model"
    inner.write_bytes(Path(tokenizer.path).read_bytes())
    assert find_template(str(inner)) == LINES_JINJA
    (tmp_path / "chat_template.jinja").write_text(LLAMA3_JINJA)
    assert find_template(tokenizer.path) == LLAMA3_JINJA
    assert find_template(str(byte_folder / "tokenizer.model")) is None
    (tmp_path / "chat_template.jinja").unlink()
    with_template(byte_folder, tmp_path, named[:1])
    with pytest.raises(UserError, match="no chat template is named 'default'"):
        find_template(tokenizer.path)


ESCAPES = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
CHANGES = "{{ messages.append(1) }}"


@pytest.mark.parametrize(
    ("jinja", "complaint"),
    [
        (ESCAPES, "unsafe operation in the template"),
        (CHANGES, "unsafe operation in the template"),
        ("{% for %}", r":1: Expected"),
        ("{{ nothing.there }}", "'nothing' is undefined"),
        ("{{ raise_exception('not today') }}", r"it rejects a conversation .*not today"),
        ("{{ messages[-1].content }}", "depends on later turns"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}", "on later turns"),
        ("hello", "the assistant's turns cannot be found"),
        (LINES_JINJA.replace("eot_id", "im_end"), "no token <|im_end|>"),
    ],
)
def test_unusable_templates_are_errors(byte_folder, tmp_path, jinja, complaint):
    tokenizer = with_template(byte_folder, tmp_path, jinja)
    with pytest.raises(UserError, match=complaint.replace("<|im_end|>", r"<\|im_end\|>")):
        load_chat_template(tokenizer, "auto")


def test_template_may_reject_a_record(byte_folder, tmp_path):
    jinja = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    template = load_chat_template(with_template(byte_folder, tmp_path, jinja + LINES_JINJA), "auto")
    assert template.render(TALK[1:]).assistant_spans
    with pytest.raises(InvalidRecordError) as caught:
        template.render(TALK)
    assert (caught.value.reason, caught.value.detail) == (
        "the chat template refuses it",
        "no system",
    )


def test_rows_do_not_depend_on_the_date(byte_folder, tmp_path):
    jinja = "{{ strftime_now('%d %b %Y') }}\n" + LINES_JINJA
    tokenizer = with_template(byte_folder, tmp_path, jinja)
    template = load_chat_template(tokenizer, "auto")
    assert tokenizer.decode(template.prompt(TALK[1:2])).startswith("26 Jul 2024\n")


def test_sentencepiece_vocabulary_with_chat_tokens(tmp_path, shared_data):
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": f"say {n}: hi"}) for n in range(99)))
    train_vocabulary([text], tmp_path / "chat.model", 280)
    tokenizer = load_tokenizer(str(tmp_path / "chat.model"))
    template = load_chat_template(tokenizer, "auto")
    rendering = template.render([Message("user", "say <|eot_id|>"), Message("assistant", "hi")])
    assert rendering.tokens[0] == tokenizer.bos_id
    assert assistant_texts(template, tokenizer, TALK) == [
        "hi<|eot_id|>",
        "(yes) <|eot_id|><|eot_id|>",
    ]
    end = tokenizer.special_id("<|eot_id|>")
    assert rendering.tokens.tolist().count(end) == 2
    llama2 = load_tokenizer(str(shared_data / "tokenizer/llama2"))
    with pytest.raises(UserError, match="no chat template next to it and no tokens of Llama 3"):
        load_chat_template(llama2, "auto")
