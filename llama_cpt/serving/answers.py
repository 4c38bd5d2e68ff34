"""Comparison of a server's greedy answers with the model's float32 logits.

The logits are computed after the server's own tokens. Each token of an answer is therefore
compared, even after a tie.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
import numpy as np

from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.generation.decoder import Decoder, compute_logits, prefill
from llama_cpt.generation.generate import generate, pad_prompts
from llama_cpt.weights.prompt_format import PromptFormat

TIE_MARGIN = 1e-3
"""Maximum margin, in nats, between tokens whose order depends on the rounding of float32."""
NEAR_TIE_MARGIN = 0.25
"""Maximum margin, in nats, between tokens whose order depends on the rounding of bfloat16."""
BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class ServedAnswer:
    """A server's answer to a question, and the ids of its prompt."""

    label: str
    prompt: list[int]
    ids: list[int]
    """The ids of the answer without the token that ends the answer."""
    is_complete: bool
    """False if the server reports only the text, so that the last tokens can be missing."""
    end_id: int | None
    """The token that ended the answer, if the server reports it."""
    finish_reason: str
    logprobs: list[float] | None


@dataclass(frozen=True)
class Difference:
    """A token of a server's answer that is not the most likely token.

    ``margin`` is the logit of the most likely token minus the logit of the server's token, which is
    the difference of their log-probabilities in nats.
    """

    position: int
    ours: int
    served: int | None
    """The server's token; None if the server ended the answer."""
    margin: float


@dataclass(frozen=True)
class AnswerComparison:
    """The differences of one answer, and the deviations of its log-probabilities."""

    answer: ServedAnswer
    differences: list[Difference]
    """All differences, including a difference at the end of the answer."""
    deviations: list[float]
    """The absolute differences between the server's log-probabilities and ours, in nats."""


def compare_answer(
    decoder: Decoder, mesh: Mesh, answer: ServedAnswer, stop_ids: Sequence[int]
) -> AnswerComparison:
    """Compare each token of ``answer``, and its end, with the most likely token.

    Tokens after a token of ``stop_ids`` are not compared.
    """
    logits = answer_logits(decoder, mesh, answer.prompt, answer.ids)
    differences = []
    count = next((n for n, one in enumerate(answer.ids) if one in stop_ids), len(answer.ids))
    for position, served in enumerate(answer.ids[:count]):
        ours = int(logits[position].argmax())
        margin = float(logits[position, ours] - logits[position, served])
        if ours != served:
            differences.append(Difference(position, ours, served, margin))
    if answer.finish_reason == "stop":
        ours, row = int(logits[count].argmax()), logits[count]
        if ours not in stop_ids:
            margin = float(row[ours] - row[list(stop_ids)].max())
            differences.append(Difference(count, ours, None, margin))
    deviations = []
    if answer.logprobs is not None:
        rows = logits[: len(answer.ids)].astype(np.float64)
        rows -= rows.max(-1, keepdims=True)
        ours = rows[np.arange(len(rows)), answer.ids] - np.log(np.exp(rows).sum(-1))
        deviations = np.abs(ours - np.array(answer.logprobs[: len(rows)])).tolist()
    return AnswerComparison(answer, differences, deviations)


def answer_logits(
    decoder: Decoder, mesh: Mesh, prompt: Sequence[int], answer: Sequence[int]
) -> np.ndarray:
    """Return the float32 logits of each token of ``answer`` and of the next token.

    The shape of the result is (len(answer) + 1, vocab_size).
    """
    tokens, lengths = pad_prompts([[*prompt, *answer]])
    # The number of rows is rounded up, so that answers of similar length share a program.
    rows = len(prompt) - 1 + np.arange(-(-(len(answer) + 1) // 16) * 16)
    with jax.set_mesh(mesh):
        logits = _logits_at(decoder, tokens, lengths, np.minimum(rows, lengths[0] - 1))
    return np.asarray(logits)[: len(answer) + 1]


@jax.jit
def _logits_at(
    decoder: Decoder,
    tokens: Int[Array, "batch length"],
    lengths: Int[Array, " batch"],
    rows: Int[Array, " rows"],
) -> Float[Array, "rows vocab"]:
    hidden, _ = prefill(decoder, tokens, lengths, columns=tokens.shape[1])
    return compute_logits(decoder, jnp.take(hidden[0], rows, axis=0))


def ids_of_texts(
    decoder: Decoder,
    mesh: Mesh,
    prompts: PromptFormat,
    answers: Sequence[tuple[list[int], str]],
    max_tokens: int,
) -> list[list[int]]:
    """Return the ids of each answer, for a server that reports only text.

    ``answers`` contains the ids of each prompt and the text of the answer. The result contains the
    ids of our own greedy answer, as far as its text is equal. The rest of the text is encoded.
    """
    if not answers:
        return []
    ours = generate(
        decoder,
        [prompt for prompt, _ in answers],
        max_new_tokens=max_tokens,
        stop_ids=prompts.stop_ids,
        mesh=mesh,
    )
    return [
        follow_text(prompts.tokenizer, ids, text.rstrip(BROKEN))
        for ids, (_, text) in zip(ours, answers, strict=True)
    ]


def follow_text(tokenizer: Tokenizer, ids: list[int], text: str) -> list[int]:
    """Return the longest beginning of ``ids`` that is in ``text``, and the ids of the rest."""
    for count in range(len(ids), -1, -1):
        known = tokenizer.decode(ids[:count])
        if text.startswith(known):
            break
    rest = text[len(known) :]
    return [*ids[:count], *(tokenizer.encode_after(known, rest) if rest else [])]
