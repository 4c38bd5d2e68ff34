"""A decoder as a model of lm-evaluation-harness: requests in, log-likelihoods and text out.

Texts are tokenized as in the Hugging Face backend of the harness, so that scores are equal up to
rounding: BOS comes first, a context is tokenized alone, and the tokens of a continuation are those
of the whole text after the length of the context's. There are two differences. The name of a
special token in a text stays text, and a continuation that adds no token to its context is scored
by the last token of the whole.
"""

from collections.abc import Iterable, Iterator, Sequence
import math
from typing import Any, Literal

import jax
from jax.sharding import Mesh
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
import numpy as np

from llama_cpt.data.chat.conversations import Message
from llama_cpt.data.chat.template import ChatTemplate
from llama_cpt.data.tokenizer.tokenizer import Tokenizer
from llama_cpt.evaluation.question_rows import (
    Tokens,
    group_by_prefix,
    make_batches,
    make_option_tokens,
    make_rows,
    merge_ungrouped,
)
from llama_cpt.evaluation.rolling_loglikelihood import rolling_loglikelihood
from llama_cpt.evaluation.written_answers import make_answer_spec, written_answers
from llama_cpt.generation.decoder import Decoder
from llama_cpt.generation.generate import pad_prompts
from llama_cpt.generation.option_scoring import Prefix, empty_prefix, read_prefix, score_options
from llama_cpt.parallel.mesh import BATCH_AXES
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.progress import Progress

Kind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]
Answer = tuple[float, bool] | float | str

BATCH_TOKENS = 2048
"""Tokens of one device per batch, padding included."""
SLAB = 8192
"""Number of requests that are tokenized and batched together."""


class HarnessModel(LM):
    """A model of the harness; ``template`` is None for a base model."""

    def __init__(
        self, decoder: Decoder, tokenizer: Tokenizer, mesh: Mesh, template: ChatTemplate | None
    ) -> None:
        super().__init__()
        self.decoder, self.tokenizer, self.mesh = decoder, tokenizer, mesh
        self.template = template
        self.cut: set[int] = set()
        """Numbers of the requests of the current call whose beginning was truncated."""
        self._start = 0
        self.context_length = decoder.ends.config.context_length
        self._row_multiple = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        self._bos = tokenizer.decode([tokenizer.bos_id])

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, in nats, and whether greedy picks it."""
        return self._all("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-likelihood of each text, in nats, in windows of the model's context."""
        return self._all("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return a continuation of each context, up to the first of its stop strings."""
        return self._all("generate_until", requests)

    def answers(self, kind: Kind, requests: Sequence[Instance]) -> Iterator[tuple[int, Answer]]:
        """Yield the number and answer of each request, in any order, as soon as it is known."""
        self.cut = set()
        for self._start in range(0, len(requests), SLAB):
            slab = [request.args for request in requests[self._start : self._start + SLAB]]
            for number, answer in _BY_KIND[kind](self, slab):
                yield self._start + number, answer

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the prompt of a conversation.

        Without a generation prompt, the model continues the last message.
        """
        if self.template is None:
            raise UserError(
                f"{self.tokenizer.path}: this model has no chat template (a base model): evaluate "
                "it without --chat-template."
            )
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]
        prefix = "" if add_generation_prompt else messages.pop().content
        return self.template.prompt_text(messages) + prefix

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the fingerprint of the template, which is part of the harness's cache key."""
        return self.template.fingerprint if self.template and chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """Fingerprint of the tokenizer, which is part of the harness's cache key."""
        return self.tokenizer.fingerprint

    def _all(self, kind: Kind, requests: list[Instance]) -> list[Any]:
        found: dict[int, Answer] = {}
        with Progress(kind, float(len(requests)), "requests") as progress:
            for number, answer in self.answers(kind, requests):
                found[number] = answer
                progress.update(1.0)
        return [found[number] for number in range(len(requests))]

    def _scored(self, slab: Sequence[tuple]) -> Iterator[tuple[int, tuple[float, bool]]]:
        pairs = self._pairs(slab)
        # The last token of an option is predicted, not read.
        self._note_cut(len(c) + len(option) - 1 > self.context_length for c, option in pairs)
        rows = make_rows(pairs, self.context_length)
        for group in merge_ungrouped(group_by_prefix(rows)):
            prefix = self._prefix(group.rows[0].context[: group.prefix])
            budget = BATCH_TOKENS * self._row_multiple
            for batch_rows, size, number in make_batches(group, budget, self._row_multiple):
                batch = make_option_tokens(batch_rows, group.prefix, size, number)
                with jax.set_mesh(self.mesh):
                    logprobs, likeliest = score_options(self.decoder, prefix, batch)
                logprobs, likeliest = np.asarray(logprobs, np.float64), np.asarray(likeliest)
                start = 0
                for request, option in (one for row in batch_rows for one in row.options):
                    span = slice(start, start := start + len(option))
                    yield request, (float(logprobs[span].sum()), bool(likeliest[span].all()))

    def _prefix(self, tokens: Tokens) -> Prefix:
        if not len(tokens):
            return empty_prefix(self.decoder)
        rows, lengths = pad_prompts([tokens.tolist()] * self._row_multiple)
        with jax.set_mesh(self.mesh):
            return read_prefix(self.decoder, rows, lengths[0])

    def _rolled(self, slab: Sequence[tuple]) -> Iterator[tuple[int, float]]:
        ids = self.tokenizer.encode_batch([text for (text,) in slab])
        bos = self.tokenizer.bos_id
        # As in the Hugging Face backend, BOS is also scored: a BOS is read before it.
        documents = [np.array([bos, bos, *one], np.int32) for one in ids]
        nats = rolling_loglikelihood(
            self.decoder,
            documents,
            mesh=self.mesh,
            bos_id=bos,
            batch_tokens=BATCH_TOKENS,
        )
        for number, nll in nats:
            yield number, -nll

    def _written(self, slab: Sequence[tuple]) -> Iterator[tuple[int, str]]:
        contexts = self._encoded([context for context, _ in slab])
        specs = [make_answer_spec(options, self.context_length) for _, options in slab]
        limits = [self.context_length - spec.max_new_tokens for spec in specs]
        limited = list(zip(contexts, limits, strict=True))
        self._note_cut(len(context) > limit for context, limit in limited)
        prompts = [context[-limit:] for context, limit in limited]
        yield from written_answers(
            self.decoder, self.tokenizer, self.mesh, prompts, specs, self._stop_ids()
        )

    def _note_cut(self, over: Iterable[bool]) -> None:
        self.cut |= {self._start + number for number, one in enumerate(over) if one}

    def _stop_ids(self) -> tuple[int, ...]:
        return self.template.stop_ids if self.template else (self.tokenizer.eos_id,)

    def _pairs(self, slab: Sequence[tuple]) -> list[tuple[Tokens, Tokens]]:
        """Return the tokens of contexts and continuations; spaces between belong to the latter."""
        split = [len(context.rstrip()) for context, _ in slab]
        contexts = [context[:end] for (context, _), end in zip(slab, split, strict=True)]
        ids = self._encoded([c + t for c, t in slab] + list(dict.fromkeys(contexts)))
        before = dict(zip(dict.fromkeys(contexts), ids[len(slab) :], strict=True))
        pairs = []
        for whole, context in zip(ids, contexts, strict=False):
            # As in the Hugging Face backend, the context's tokens are those of the context alone,
            # even if a token of the whole text spans the boundary.
            size = len(before[context])
            has_own_tokens = size < len(whole)
            pairs.append(
                (before[context], whole[size:]) if has_own_tokens else (whole[:-1], whole[-1:])
            )
        return pairs

    def _encoded(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each text, BOS first; a rendered template has special tokens."""
        plain = [text for text in texts if not self._is_rendered(text)]
        ids = iter(self.tokenizer.encode_batch(plain) if plain else ())
        return [
            np.array(
                self.template.encode(text)
                if self._is_rendered(text)
                else [self.tokenizer.bos_id, *next(ids)],
                np.int32,
            )
            for text in texts
        ]

    def _is_rendered(self, text: str) -> bool:
        return self.template is not None and text.startswith(self._bos)


_BY_KIND = {
    "loglikelihood": HarnessModel._scored,
    "loglikelihood_rolling": HarnessModel._rolled,
    "generate_until": HarnessModel._written,
}
