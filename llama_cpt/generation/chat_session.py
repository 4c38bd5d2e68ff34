"""A chat session that streams answers and drops the oldest turns when the context is full."""

from collections.abc import Generator, Iterator
import contextlib
from dataclasses import dataclass, field

from jax.sharding import Mesh

from llama_cpt.data.chat.conversations import Message
from llama_cpt.data.chat.template import (
    LLAMA3_TOKENS,
    ChatTemplate,
    find_template,
    load_chat_template,
)
from llama_cpt.data.tokenizer.tokenizer import Tokenizer
from llama_cpt.generation.decoder import Decoder
from llama_cpt.generation.generate import stream
from llama_cpt.generation.sampling import Sampling
from llama_cpt.runtime.errors import UserError

BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass
class ChatSession:
    """One conversation with a model. ``messages`` holds the whole conversation."""

    decoder: Decoder
    tokenizer: Tokenizer
    template: ChatTemplate | None
    """The chat template; None for a base model, which continues the user's text."""
    mesh: Mesh
    sampling: Sampling
    max_new_tokens: int
    messages: list[Message] = field(default_factory=list)
    dropped: int = 0
    """The number of oldest messages that the last prompt omitted to fit into the context."""

    def set_system(self, text: str) -> None:
        """Set the system message; an empty ``text`` removes it."""
        turns = [message for message in self.messages if message.role != "system"]
        self.messages = [Message("system", text)] * bool(text) + turns

    def reset(self) -> None:
        """Remove all messages except the system message."""
        self.messages = [message for message in self.messages if message.role == "system"]

    def reply(self, text: str) -> Generator[str]:
        """Yield the answer to ``text`` in pieces.

        At the end of the iteration, ``text`` and the answer are appended to ``messages``. If the
        caller stops the iteration early, the appended answer is incomplete. Raises UserError, and
        leaves ``messages`` unchanged, if ``text`` leaves no room for an answer in the context.
        """
        messages = [*self.messages, Message("user", text)]
        if self.template is None:
            prompt = self._plain_prompt(text)
        else:
            prompt = self._chat_prompt(self.template, messages)
        room = self.decoder.ends.config.context_length - len(prompt)
        if room < 1:
            raise UserError(
                f"the prompt with this message has {len(prompt)} tokens, which leaves no room for "
                f"an answer in the model's context of {room + len(prompt)}; shorten the message."
            )
        answer: list[str] = []
        with contextlib.closing(self._answer(prompt, min(self.max_new_tokens, room))) as pieces:
            try:
                for piece in pieces:
                    answer.append(piece)
                    yield piece
            finally:
                self.messages = [*messages, Message("assistant", "".join(answer))]

    def _plain_prompt(self, text: str) -> list[int]:
        return [self.tokenizer.bos_id, *self.tokenizer.encode(text)]

    def _chat_prompt(self, template: ChatTemplate, messages: list[Message]) -> list[int]:
        """Return the prompt's token ids, and set ``dropped``.

        The oldest turns are dropped until the context has room for an answer of ``max_new_tokens``
        tokens or of half the context, whichever is less.
        """
        context = self.decoder.ends.config.context_length
        limit = context - min(self.max_new_tokens, context // 2)
        first = int(messages[0].role == "system")
        self.dropped = 0
        prompt = template.prompt(messages)
        # A question is dropped together with its answer.
        while len(prompt) > limit and first + self.dropped + 2 < len(messages):
            self.dropped += 2
            kept = messages[:first] + messages[first + self.dropped :]
            prompt = template.prompt(kept)
        return prompt

    def _answer(self, prompt: list[int], max_new_tokens: int) -> Generator[str]:
        batches = stream(
            self.decoder,
            [prompt],
            max_new_tokens=max_new_tokens,
            stop_ids=self.template.stop_ids if self.template else (self.tokenizer.eos_id,),
            sampling=self.sampling,
            mesh=self.mesh,
        )
        return stream_text(self.tokenizer, (rows[0] for rows in batches))


def find_chat_template(tokenizer: Tokenizer) -> ChatTemplate | None:
    """Return the tokenizer's chat template.

    The result is None for a base model, which has neither a template nor Llama 3's chat tokens.
    """
    if find_template(tokenizer.path) is None and tokenizer.special_id(LLAMA3_TOKENS[0]) is None:
        return None
    return load_chat_template(tokenizer, "auto")


def stream_text(tokenizer: Tokenizer, batches: Iterator[list[int]]) -> Generator[str]:
    """Yield the text of each batch of token ids as soon as the batch arrives.

    Special tokens are removed. An incomplete character at the end of a batch is yielded after its
    remaining bytes have arrived.
    """
    special = {*tokenizer.special_tokens.values(), tokenizer.bos_id, tokenizer.eos_id}
    ids: list[int] = []
    emitted = ""
    for batch in batches:
        ids += [token for token in batch if token not in special]
        # The text of an incomplete character changes when its remaining bytes arrive.
        text = tokenizer.decode(ids).rstrip(BROKEN)
        if len(text) > len(emitted) and text.startswith(emitted):
            yield text[len(emitted) :]
            emitted = text
    text = tokenizer.decode(ids)
    if len(text) > len(emitted):
        yield text[len(emitted) :]
