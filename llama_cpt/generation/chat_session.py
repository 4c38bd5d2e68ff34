"""A chat session that streams answers and drops the oldest turns when the context is full."""

from collections.abc import Generator, Iterator
import contextlib
from dataclasses import dataclass, field

from jax.sharding import Mesh

from llama_cpt.data.chat.conversations import Message
from llama_cpt.data.chat.template import ChatTemplate, answer_end_ids
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.generation.decoder import Decoder
from llama_cpt.generation.generate import stream
from llama_cpt.generation.sampling import Sampling
from llama_cpt.runtime.errors import UserError

BROKEN = "\N{REPLACEMENT CHARACTER}"
KEPT_TOKENS = 8
"""Number of tokens of finished text that are decoded again together with new tokens."""
MAX_WINDOW = 256
"""Number of tokens after which an incomplete character is yielded as U+FFFD."""


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
    end_ids: tuple[int, ...] = ()
    """Ids that end an answer in addition to EOS and the template's end-of-turn token."""

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
        return [*self.tokenizer.text_prefix, *self.tokenizer.encode(text)]

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
            stop_ids=answer_end_ids(self.tokenizer, self.template, self.end_ids),
            sampling=self.sampling,
            mesh=self.mesh,
        )
        return stream_text(self.tokenizer, (rows[0] for rows in batches))


def stream_text(tokenizer: Tokenizer, batches: Iterator[list[int]]) -> Generator[str]:
    """Yield the text of each batch of token ids as soon as the batch arrives.

    Special tokens are removed. An incomplete character at the end of a batch is yielded after its
    remaining bytes have arrived.
    """
    special = set(tokenizer.special_tokens.values())
    # The ids whose text can still change, after a few earlier ids: the text of a token can depend
    # on the tokens before it. Decoding all ids for each batch would take quadratic time.
    ids: list[int] = []
    emitted = ""
    for batch in batches:
        ids += [token for token in batch if token not in special]
        text = tokenizer.decode(ids)
        # The text of an incomplete character changes when its remaining bytes arrive. Bytes that
        # never become a character must not grow the window without limit.
        is_full = len(ids) > MAX_WINDOW
        complete = text if is_full else text.rstrip(BROKEN)
        if is_full or complete.startswith(emitted):
            if new := complete[len(emitted) :]:
                yield new
            emitted = complete
        if emitted == text and len(ids) > KEPT_TOKENS:
            ids = ids[-KEPT_TOKENS:]
            emitted = tokenizer.decode(ids)
    text = tokenizer.decode(ids)
    if len(text) > len(emitted):
        yield text[len(emitted) :]
