"""A conversation with a model: what is sent, what comes back as text, what no longer fits."""

from collections.abc import Iterator, Sequence
import contextlib
from dataclasses import dataclass, field

from jax.sharding import Mesh

from llama_cpt.data.tokenizer import BOS, EOS, LLAMA3_SPECIAL, Tokenizer
from llama_cpt.errors import UserError
from llama_cpt.model.decoder import Decoder
from llama_cpt.model.generate import stream
from llama_cpt.model.sampling import Sampling

Message = dict[str, str]
"""``role`` and ``content``."""

HEADER, HEADER_END, TURN_END = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass
class Session:
    """One conversation; ``messages`` is all that it remembers."""

    decoder: Decoder
    tokenizer: Tokenizer
    mesh: Mesh
    sampling: Sampling
    max_new_tokens: int
    messages: list[Message] = field(default_factory=list)
    dropped: int = 0
    """Turns left out of the last prompt, the oldest, because the context is full."""

    @property
    def is_base(self) -> bool:
        """Whether the tokenizer has no tokens for a chat: text is continued as it is."""
        return self.tokenizer.special_id(HEADER) is None

    def set_system(self, text: str) -> None:
        """The system message from now on; none where ``text`` is empty."""
        turns = [message for message in self.messages if message["role"] != "system"]
        self.messages = [{"role": "system", "content": text}] * bool(text) + turns

    def reset(self) -> None:
        """Forget every turn, not the system message."""
        self.messages = [message for message in self.messages if message["role"] == "system"]

    def ask(self, text: str) -> Iterator[str]:
        """Pieces of the answer to ``text``; both are remembered, an interrupted answer as well.

        Raises UserError, and remembers nothing, where ``text`` alone is over the context.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        prompt = tokens_of(self.tokenizer, asked[-1:]) if self.is_base else self._fitted(asked)
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
                self.messages = [*asked, {"role": "assistant", "content": "".join(answer)}]

    def _fitted(self, messages: list[Message]) -> list[int]:
        """The prompt without as many of the oldest turns as leave room for an answer."""
        context = self.decoder.ends.config.context_length
        limit = context - min(self.max_new_tokens, context // 2)
        first = int(messages[0]["role"] == "system")
        self.dropped = 0
        prompt = tokens_of(self.tokenizer, messages)
        # A question goes together with its answer.
        while len(prompt) > limit and first + self.dropped + 2 < len(messages):
            self.dropped += 2
            kept = messages[:first] + messages[first + self.dropped :]
            prompt = tokens_of(self.tokenizer, kept)
        return prompt

    def _answer(self, prompt: list[int], max_new_tokens: int) -> Iterator[str]:
        new = stream(
            self.decoder,
            [prompt],
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids(self.tokenizer),
            sampling=self.sampling,
            mesh=self.mesh,
        )
        return text_pieces(self.tokenizer, (rows[0] for rows in new))


def tokens_of(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The ids after which the model answers: Llama-3's format (its model card, "prompt format").

    A tokenizer without its tokens gets the bare text.
    """
    ids = [tokenizer.bos_id]
    header, header_end, end = map(tokenizer.special_id, (HEADER, HEADER_END, TURN_END))
    if header is None or header_end is None or end is None:
        return ids + tokenizer.encode("".join(message["content"] for message in messages))
    blank = tokenizer.encode("\n\n")
    for message in messages:
        ids += [header, *tokenizer.encode(message["role"]), header_end, *blank]
        ids += [*tokenizer.encode(message["content"].strip()), end]
    return [*ids, header, *tokenizer.encode("assistant"), header_end, *blank]


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """The tokens that end an answer."""
    named = map(tokenizer.special_id, (EOS, "<|eom_id|>", TURN_END))
    return sorted({tokenizer.eos_id, *(one for one in named if one is not None)})


def text_pieces(tokenizer: Tokenizer, batches: Iterator[list[int]]) -> Iterator[str]:
    """The text of ids as they come: no half character, no special token."""
    special = {tokenizer.special_id(name) for name in (*LLAMA3_SPECIAL, BOS, EOS)}
    special |= {tokenizer.bos_id, tokenizer.eos_id}
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
