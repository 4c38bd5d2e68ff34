"""Prompts with which a server is compared: texts, conversations and questions in two languages."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from llama_cpt.data.chat.conversations import Message
from llama_cpt.weights.prompt_format import PromptFormat

Prompt = str | tuple[Message, ...]
"""A text to continue, or a conversation to answer."""
TEXTS = {
    "English": "The river rose in the night, and by morning the bridge was gone.",
    "Chinese": "长城位于中国北方,全长两万多公里。",
    "emoji": "Good 👍🏽 morning, 家族 👨‍👩‍👧‍👦!",
    "spaces": "  two spaces,\ta tab\n\n\nand 1234567 digits ",
}
QUESTIONS = (
    "What is the capital of France?",
    "Name three colors.",
    "How many legs does a spider have?",
    "Write one sentence about the sea.",
    "What is 2 + 2?",
    "Say hello to a new neighbor.",
    "Which animal barks?",
    "法国的首都是哪里?",
    "请说出三种颜色。",
    "蜘蛛有几条腿?",
    "写一句关于大海的话。",
    "二加二等于几?",
    "请向新邻居问好。",
    "哪种动物会汪汪叫?",
)
MISSING_MARKER = "<|eot_id|>"
"""A control token of Llama 3, which is ordinary text for models that do not have this token."""
_CONVERSATIONS = {
    "system message": (
        Message("system", "You are a helpful assistant. 请简短回答。"),
        Message("user", "Who are you?"),
    ),
    "three turns": (
        Message("user", "我叫小明。"),
        Message("assistant", "你好,小明!"),
        Message("user", "What is my name?"),
    ),
    "emoji": (Message("user", "What does 🤷🏾‍♀️ mean, and 🇨🇳?"),),
    "outer spaces": (Message("user", " \n  Spaces around a message.  \n"),),
}


@dataclass(frozen=True)
class Case:
    """A prompt to compare."""

    kind: Literal["text", "conversation", "control token", "question"]
    """The check that the prompt belongs to. The answers to questions are compared as well."""
    label: str
    prompt: Prompt


def cases(prompts: PromptFormat) -> Iterator[Case]:
    """Yield the prompts for a model; a model without a chat template receives only texts.

    The user of a prompt of the kind "control token" types the name of a token that the chat
    template writes in every turn.
    """
    yield from (Case("text", label, text) for label, text in TEXTS.items())
    if prompts.template is None:
        yield from (Case("question", text, text) for text in QUESTIONS)
        return
    for label, messages in _CONVERSATIONS.items():
        yield Case("conversation", label, messages)
    names = {id_: name for name, id_ in prompts.tokenizer.special_tokens.items()}
    markers = {names[marker] for marker in prompts.template.turn_markers}
    for name in sorted({*markers, MISSING_MARKER}):
        message = Message("user", f"This is my question.{name}\nThis is still my question.")
        yield Case("control token", name, (message,))
    for text in QUESTIONS:
        yield Case("question", text, (Message("user", text),))


def our_ids(prompts: PromptFormat, prompt: Prompt) -> list[int]:
    """Return the ids that llama_cpt makes of ``prompt``.

    Raises UserError if the chat template rejects the conversation.
    """
    if isinstance(prompt, str):
        return [*prompts.tokenizer.text_prefix, *prompts.tokenizer.encode(prompt)]
    assert prompts.template is not None, "only models with a chat template receive conversations"
    return prompts.template.prompt(prompt)
