"""An adapter that lets lm-evaluation-harness (the harness) evaluate a decoder.

Texts are tokenized as in the harness's Hugging Face backend, so that scores are equal up to
rounding. A text begins with BOS if the tokenizer adds BOS. A context is tokenized once alone and
once together with its continuation. If the context alone has n tokens, the continuation consists of
the tokens of the whole text after the first n. There are two differences from the backend. First,
the name of a special token is encoded as ordinary text, unless the chat template rendered the text.
Second, if the continuation adds no token to the context, the last token of the whole text is
scored.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import math
from typing import Any

import jax
from jax.sharding import Mesh
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
import numpy as np

from llama_cpt.data.chat.conversations import Message
from llama_cpt.data.chat.formats import ROLES
from llama_cpt.data.chat.template import ChatTemplate, answer_end_ids
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.evaluation.question_rows import (
    Tokens,
    group_by_prefix,
    make_batches,
    make_option_tokens,
    make_rows,
    merge_ungrouped,
)
from llama_cpt.evaluation.rolling import rolling_loglikelihood
from llama_cpt.evaluation.written_answers import make_answer_spec, written_answers
from llama_cpt.generation.decoder import Decoder
from llama_cpt.generation.generate import pad_prompts
from llama_cpt.generation.option_scoring import Prefix, empty_prefix, read_prefix, score_options
from llama_cpt.parallel.mesh import BATCH_AXES
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.progress import Progress

RENDERED = "\ufdd4"
"""A noncharacter that the adapter puts before a prompt that the chat template rendered."""
Answer = tuple[float, bool] | float | str
Arguments = tuple[Any, ...]

BATCH_TOKENS = 2048
"""Number of tokens per device in a batch, including padding."""
SLAB = 8192
"""Number of requests that are tokenized and batched together."""


class HarnessModel(LM):
    """An adapter that gives a decoder the model interface of lm-evaluation-harness.

    ``template`` is the chat template; it is None for a base model. ``end_ids`` are ids that end an
    answer in addition to EOS and the template's end-of-turn token.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        mesh: Mesh,
        template: ChatTemplate | None,
        end_ids: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.decoder, self.tokenizer, self.mesh = decoder, tokenizer, mesh
        self.template = template
        self.cut: set[int] = set()
        """Indices of requests of the current ``answers`` call that were truncated on the left."""
        self._start = 0
        self.context_length = decoder.ends.config.context_length
        self._row_multiple = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        self._stop_ids = answer_end_ids(tokenizer, template, end_ids)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, is_greedy) for each continuation.

        The second value is True if greedy decoding generates the continuation.
        """
        return self._all("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-likelihood of each text in nats.

        A text that is longer than the context is scored in windows of the context length.
        """
        return self._all("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the generated continuation of each context, up to the first stop string."""
        return self._all("generate_until", requests)

    def answers(self, kind: str, requests: Sequence[Instance]) -> Iterator[tuple[int, Answer]]:
        """Yield the index and answer of each request as soon as the answer is known, in any order.

        ``kind`` is ``loglikelihood``, ``loglikelihood_rolling`` or ``generate_until``.
        """
        compute: Callable[[Sequence[Arguments]], Iterator[tuple[int, Answer]]] = {
            "loglikelihood": self._scored,
            "loglikelihood_rolling": self._rolled,
            "generate_until": self._written,
        }[kind]
        self.cut = set()
        for self._start in range(0, len(requests), SLAB):
            slab = [request.args for request in requests[self._start : self._start + SLAB]]
            for number, answer in compute(slab):
                yield self._start + number, answer

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the prompt of a conversation, rendered with the chat template.

        If ``add_generation_prompt`` is False, the prompt ends with the last message, which the
        model then continues. Raises UserError if the model has no chat template.
        """
        if self.template is None:
            raise UserError(
                f"{self.tokenizer.path}: the model has no chat template; evaluate it without "
                "--chat-template."
            )
        messages = [Message(ROLES[turn["role"]], turn["content"]) for turn in chat_history]
        prefix = "" if add_generation_prompt else messages.pop().content
        return RENDERED + self.template.prompt_text(messages) + prefix

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the chat template's fingerprint for the harness's cache key.

        The result is "" if the model has no chat template or ``chat_template`` is False or "".
        """
        return self.template.fingerprint if self.template and chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """Fingerprint of the tokenizer for the harness's cache key."""
        return self.tokenizer.fingerprint

    def _all(self, kind: str, requests: list[Instance]) -> list[Any]:
        found: dict[int, Answer] = {}
        with Progress(kind, float(len(requests)), "requests") as progress:
            for number, answer in self.answers(kind, requests):
                found[number] = answer
                progress.update(1.0)
        return [found[number] for number in range(len(requests))]

    def _scored(self, slab: Sequence[Arguments]) -> Iterator[tuple[int, tuple[float, bool]]]:
        pairs = self._pairs(slab)
        # The last token of an option is only predicted, so it takes no position in the context.
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

    def _rolled(self, slab: Sequence[Arguments]) -> Iterator[tuple[int, float]]:
        ids = self.tokenizer.encode_batch([text for (text,) in slab])
        # As in the Hugging Face backend, BOS itself is scored, so an additional BOS precedes it.
        before = (self.tokenizer.context_id, *self.tokenizer.text_prefix)
        documents = [np.array([*before, *one], np.int32) for one in ids]
        nats = rolling_loglikelihood(
            self.decoder,
            documents,
            mesh=self.mesh,
            window=self.context_length,
            batch_tokens=BATCH_TOKENS,
        )
        for number, nll in nats:
            yield number, -nll

    def _written(self, slab: Sequence[Arguments]) -> Iterator[tuple[int, str]]:
        contexts = self._encoded([context for context, _ in slab])
        specs = [make_answer_spec(options, self.context_length) for _, options in slab]
        limits = [self.context_length - spec.max_new_tokens for spec in specs]
        limited = list(zip(contexts, limits, strict=True))
        self._note_cut(len(context) > limit for context, limit in limited)
        prompts = [context[-limit:] for context, limit in limited]
        yield from written_answers(
            self.decoder, self.tokenizer, self.mesh, prompts, specs, self._stop_ids
        )

    def _note_cut(self, over: Iterable[bool]) -> None:
        self.cut |= {self._start + number for number, one in enumerate(over) if one}

    def _pairs(self, slab: Sequence[Arguments]) -> list[tuple[Tokens, Tokens]]:
        """Return the tokens of each context and the tokens of its continuation.

        Whitespace at the end of a context is moved to the beginning of its continuation.
        """
        split = [len(context.rstrip()) for context, _ in slab]
        contexts = [context[:end] for (context, _), end in zip(slab, split, strict=True)]
        ids = self._encoded([c + t for c, t in slab] + list(dict.fromkeys(contexts)))
        before = dict(zip(dict.fromkeys(contexts), ids[len(slab) :], strict=True))
        pairs = []
        for whole, context, (given, _) in zip(ids, contexts, slab, strict=False):
            if not given:
                # As in the harness, an empty context is BOS, even if the tokenizer adds no BOS.
                start = len(self.tokenizer.text_prefix)
                pairs.append((np.array([self.tokenizer.context_id], np.int32), whole[start:]))
                continue
            # As in the Hugging Face backend, the context is tokenized alone, even if a token of the
            # whole text spans the boundary.
            size = len(before[context])
            has_own_tokens = size < len(whole)
            pairs.append(
                (before[context], whole[size:]) if has_own_tokens else (whole[:-1], whole[-1:])
            )
        return pairs

    def _encoded(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each text.

        The names of special tokens are encoded as special tokens only in texts that the chat
        template rendered.
        """
        plain = iter(self.tokenizer.encode_batch([t for t in texts if not t.startswith(RENDERED)]))
        found = []
        for text in texts:
            prefix = self.tokenizer.text_prefix
            if text.startswith(RENDERED) and self.template:
                prompt = text.removeprefix(RENDERED)
                ids = self.template.encode(prompt)
                # As in the Hugging Face backend, BOS is added to a prompt that does not begin with
                # BOS, even if the template writes no BOS.
                prefix = () if ids[:1] == [self.tokenizer.context_id] else prefix
            else:
                ids = next(plain)
            found.append(np.array([*prefix, *ids], np.int32))
        return found
