"""A conversation with a model: prompts, answers as streamed text, and removal of old turns."""

from collections.abc import Iterator
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
    """One conversation, whose whole memory is ``messages``."""

    decoder: Decoder
    tokenizer: Tokenizer
    template: ChatTemplate | None
    """The chat template; None for a base model, which continues the text."""
    mesh: Mesh
    sampling: Sampling
    max_new_tokens: int
    messages: list[Message] = field(default_factory=list)
    dropped: int = 0
    """Number of oldest turns left out of the last prompt because the context was full."""

    def set_system(self, text: str) -> None:
        """Set the system message; an empty ``text`` removes it."""
        turns = [message for message in self.messages if message.role != "system"]
        self.messages = [Message("system", text)] * bool(text) + turns

    def reset(self) -> None:
        """Remove all messages except the system message."""
        self.messages = [message for message in self.messages if message.role == "system"]

    def reply(self, text: str) -> Iterator[str]:
        """Yield pieces of the answer to ``text``, and add both to ``messages``.

        An interrupted answer is added as far as it came. Raises UserError, and adds nothing, if
        ``text`` alone exceeds the context.
        """
        messages = [*self.messages, Message("user", text)]
        prompt = self._chat_prompt(messages) if self.template else self._plain_prompt(text)
        room = self.decoder.ends.config.context_length - len(prompt)
        if room < 1:
            raise UserError(
                f"this message has {len(prompt)} tokens: with its answer that is over the "
                f"model's context of {room + len(prompt)}; shorten it."
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

    def _chat_prompt(self, messages: list[Message]) -> list[int]:
        """Return the prompt, without the oldest turns if they leave no room for an answer."""
        context = self.decoder.ends.config.context_length
        limit = context - min(self.max_new_tokens, context // 2)
        first = int(messages[0].role == "system")
        self.dropped = 0
        prompt = self.template.prompt(messages)
        # A question is dropped together with its answer.
        while len(prompt) > limit and first + self.dropped + 2 < len(messages):
            self.dropped += 2
            kept = messages[:first] + messages[first + self.dropped :]
            prompt = self.template.prompt(kept)
        return prompt

    def _answer(self, prompt: list[int], max_new_tokens: int) -> Iterator[str]:
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
    """Return the chat template; None for a base model, whose tokenizer has no chat tokens."""
    if find_template(tokenizer.path) is None and tokenizer.special_id(LLAMA3_TOKENS[0]) is None:
        return None
    return load_chat_template(tokenizer, "auto")


def stream_text(tokenizer: Tokenizer, batches: Iterator[list[int]]) -> Iterator[str]:
    """Yield the text of ids as they arrive, without partial characters and special tokens."""
    special = {*tokenizer.special_tokens.values(), tokenizer.bos_id, tokenizer.eos_id}
    ids: list[int] = []
    emitted = ""
    for batch in batches:
        ids += [one for one in batch if one not in special]
        # A partial character at the end is held back until its other bytes arrive.
        text = tokenizer.decode(ids).rstrip(BROKEN)
        if len(text) > len(emitted) and text.startswith(emitted):
            yield text[len(emitted) :]
            emitted = text
    text = tokenizer.decode(ids)
    if len(text) > len(emitted):
        yield text[len(emitted) :]
