"""A conversation with a model: what is sent, what comes back as text, what no longer fits."""

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
    """One conversation; ``messages`` is all that it remembers."""

    decoder: Decoder
    tokenizer: Tokenizer
    template: ChatTemplate | None
    """None: text is continued as it is."""
    mesh: Mesh
    sampling: Sampling
    max_new_tokens: int
    messages: list[Message] = field(default_factory=list)
    dropped: int = 0
    """Turns left out of the last prompt, the oldest, because the context is full."""

    def set_system(self, text: str) -> None:
        """The system message from now on; none where ``text`` is empty."""
        turns = [message for message in self.messages if message.role != "system"]
        self.messages = [Message("system", text)] * bool(text) + turns

    def reset(self) -> None:
        """Forget every turn, not the system message."""
        self.messages = [message for message in self.messages if message.role == "system"]

    def reply(self, text: str) -> Iterator[str]:
        """Pieces of the answer to ``text``; both are remembered, an interrupted answer as well.

        Raises UserError, and remembers nothing, where ``text`` alone is over the context.
        """
        asked = [*self.messages, Message("user", text)]
        prompt = self._fitted(asked) if self.template else self._plain(text)
        room = self.decoder.ends.config.context_length - len(prompt)
        if room < 1:
            raise UserError(
                f"this message takes {len(prompt)} tokens: with its answer that is over the "
                f"model's context of {room + len(prompt)}; shorten it."
            )
        answer: list[str] = []
        with contextlib.closing(self._answer(prompt, min(self.max_new_tokens, room))) as pieces:
            try:
                for piece in pieces:
                    answer.append(piece)
                    yield piece
            finally:
                self.messages = [*asked, Message("assistant", "".join(answer))]

    def _plain(self, text: str) -> list[int]:
        return [self.tokenizer.bos_id, *self.tokenizer.encode(text)]

    def _fitted(self, messages: list[Message]) -> list[int]:
        """The prompt without as many of the oldest turns as leave room for an answer."""
        context = self.decoder.ends.config.context_length
        limit = context - min(self.max_new_tokens, context // 2)
        first = int(messages[0].role == "system")
        self.dropped = 0
        prompt = self.template.prompt(messages)
        # A question goes together with its answer.
        while len(prompt) > limit and first + self.dropped + 2 < len(messages):
            self.dropped += 2
            kept = messages[:first] + messages[first + self.dropped :]
            prompt = self.template.prompt(kept)
        return prompt

    def _answer(self, prompt: list[int], max_new_tokens: int) -> Iterator[str]:
        new = stream(
            self.decoder,
            [prompt],
            max_new_tokens=max_new_tokens,
            stop_ids=self.template.stop_ids if self.template else (self.tokenizer.eos_id,),
            sampling=self.sampling,
            mesh=self.mesh,
        )
        return stream_text(self.tokenizer, (rows[0] for rows in new))


def find_chat_template(tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template to talk by; None for a base model, whose tokenizer has no tokens for a chat."""
    if find_template(tokenizer.path) is None and tokenizer.special_id(LLAMA3_TOKENS[0]) is None:
        return None
    return load_chat_template(tokenizer, "auto")


def stream_text(tokenizer: Tokenizer, batches: Iterator[list[int]]) -> Iterator[str]:
    """The text of ids as they come: no half character, no special token."""
    special = {*tokenizer.special_tokens.values(), tokenizer.bos_id, tokenizer.eos_id}
    ids: list[int] = []
    told = ""
    for batch in batches:
        ids += [one for one in batch if one not in special]
        # What ends in the middle of a character waits for the rest of it.
        text = tokenizer.decode(ids).rstrip(BROKEN)
        if len(text) > len(told) and text.startswith(told):
            yield text[len(told) :]
            told = text
    rest = tokenizer.decode(ids)
    if len(rest) > len(told):
        yield rest[len(told) :]
