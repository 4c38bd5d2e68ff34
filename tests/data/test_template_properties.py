"""Texts of chat templates, compared with ``apply_chat_template`` of transformers."""

from datetime import datetime
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from llama_cpt.data.chat.conversations import MARKS, InvalidRecordError, Message
from llama_cpt.data.chat.jinja import JinjaTemplate
from llama_cpt.runtime import jinja_worker
from llama_cpt.runtime.errors import UserError

theirs = pytest.importorskip("transformers.utils.chat_template_utils")
from jinja2.exceptions import TemplateError  # noqa: E402

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
STYLES = {
    file.stem: file.read_text("utf-8")
    for file in sorted(Path(__file__).with_name("templates").glob("*.jinja"))
}
TEXTS = st.text(st.sampled_from("aß中 \n\t'\"<>&{}%|\\é")) | st.sampled_from(
    ["", " x ", "<think>\ny</think>\n\nz", "{{ 1 }}", "<|im_end|>", "</s>", "'}}"]
)


@st.composite
def chats(draw):
    """Return a system message or none, then turns of the user and the assistant."""
    system = [Message("system", draw(TEXTS))] if draw(st.booleans()) else []
    roles = ("user", "assistant") * 3
    count = draw(st.integers(1, 6))
    return [*system, *(Message(role, draw(TEXTS)) for role in roles[:count])]


@pytest.mark.parametrize("style", STYLES)
@settings(deadline=None, max_examples=40)
@given(messages=chats(), prompting=st.booleans())
def test_texts_and_refusals_equal_those_of_transformers(style, messages, prompting):
    template = JinjaTemplate(STYLES[style], NAMES, "here")
    chat = [{"role": m.role, "content": m.content} for m in messages]
    try:
        (expected,), spans = theirs.render_jinja_template(
            [chat],
            chat_template=STYLES[style].replace('strftime_now("%d %b %Y")', "'26 Jul 2024'"),
            add_generation_prompt=prompting,
            return_assistant_tokens_mask=style == "generation",
            **NAMES,
        )
    except TemplateError as error:
        with pytest.raises(InvalidRecordError) as caught:
            template.render(messages, generation_prompt=prompting)
        assert caught.value.detail == str(error)
        return
    assert template.render(messages, generation_prompt=prompting) == expected
    if style == "generation" and not prompting and any(m.role == "assistant" for m in messages):
        text, found = template.render_with_spans(messages)
        assert text == expected
        assert [text[a:b] for a, b in found] == [expected[a:b] for a, b in spans[0]]


def test_spans_of_styles_without_generation_blocks():
    messages = [Message("user", "hi"), Message("assistant", "yes"), Message("user", "so")]
    for style, answer in {
        "llama3": "yes<|eot_id|>",
        "chatml": "yes<|im_end|>\n",
        "zephyr": "yes</s>\n",
        "gemma": "yes<end_of_turn>\n",
        "mistral": " yes</s>",
    }.items():
        text, spans = JinjaTemplate(STYLES[style], NAMES, "here").render_with_spans(messages)
        assert [text[a:b] for a, b in spans] == [answer], style


def test_prompts_need_no_spans():
    template = JinjaTemplate(STYLES["thinking"], NAMES, "here")
    messages = [Message("user", "hi"), Message("assistant", "yes"), Message("user", "so")]
    assert template.render(messages, generation_prompt=True).endswith("assistant\n<think>\n")
    with pytest.raises(UserError, match="the text of a turn depends on later turns"):
        template.render_with_spans(messages)


def test_limits_are_errors_that_name_the_template(monkeypatch):
    monkeypatch.setattr(jinja_worker, "SECONDS", 0.5)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    template = JinjaTemplate(loop, {}, "model/tokenizer.json")
    with pytest.raises(UserError, match="^chat template of model/tokenizer.json: runs longer than"):
        template.render([])
    with pytest.raises(UserError, match="^chat template of a: needs more than 1 GB"):
        JinjaTemplate("{{ 'a' * 10**10 }}", {}, "a").render([])
    with pytest.raises(UserError, match="^chat template of a:2: Expected an expression"):
        JinjaTemplate("\n{% for %}", {}, "a")


def test_marks_and_date_are_those_of_the_package():
    assert (jinja_worker.GENERATION, jinja_worker.END_GENERATION) == tuple(MARKS[2:])
    assert jinja_worker.TODAY == datetime(2024, 7, 26)
