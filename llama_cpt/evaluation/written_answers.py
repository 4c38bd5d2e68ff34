"""Answers that a model writes: batches of prompts, each up to its first stop string."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
import math
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from llama_cpt.data.tokenizer.tokenizer import Tokenizer
from llama_cpt.evaluation.question_rows import Tokens
from llama_cpt.generation.decoder import Decoder
from llama_cpt.generation.generate import (
    NO_TOKEN,
    TOKENS_PER_CALL,
    advance,
    bucket_length,
    pad_prompts,
    start,
    stop_array,
)
from llama_cpt.generation.sampling import Sampling
from llama_cpt.parallel.mesh import BATCH_AXES

ROWS = 16
"""Prompts that one device answers together."""
NEW_TOKENS = 256
"""Where a task names no number: the harness's own default."""


@dataclass(frozen=True)
class AnswerSpec:
    """How an answer is to be written."""

    stops: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling


def make_answer_spec(options: Mapping[str, Any], context_length: int) -> AnswerSpec:
    """What a task's ``generation_kwargs`` ask for; half of a context that has not the room."""
    until = options.get("until") or []
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    wanted = next((options[name] for name in names if options.get(name)), NEW_TOKENS)
    # As the harness: a temperature says it, where nothing else does.
    temperature = float(options.get("temperature", 1.0))
    sampled = options.get("do_sample", "temperature" in options) and temperature > 0
    return AnswerSpec(
        stops=tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop),
        max_new_tokens=wanted if wanted < context_length else context_length // 2,
        sampling=Sampling(
            temperature=temperature,
            top_k=int(options.get("top_k", 0)),
            top_p=float(options.get("top_p", 1.0)),
        )
        if sampled
        else Sampling(),
    )


def written_answers(
    decoder: Decoder,
    tokenizer: Tokenizer,
    mesh: Mesh,
    prompts: Sequence[Tokens],
    orders: Sequence[AnswerSpec],
    stop_ids: Sequence[int],
) -> Iterator[tuple[int, str]]:
    """Number and text of each prompt's answer, batch by batch, the longest prompts first."""
    together = ROWS * math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    alike: dict[tuple, list[int]] = {}
    for number in sorted(range(len(prompts)), key=lambda n: -len(prompts[n])):
        order = orders[number]
        size = bucket_length(len(prompts[number]))
        alike.setdefault((size, order.max_new_tokens, order.sampling), []).append(number)
    for numbers in alike.values():
        for first in range(0, len(numbers), together):
            batch = numbers[first : first + together]
            texts = _batch_answers(
                decoder,
                tokenizer,
                mesh,
                [prompts[n] for n in batch],
                [orders[n] for n in batch],
                stop_ids,
                together,
            )
            yield from zip(batch, texts, strict=True)


def _batch_answers(
    decoder: Decoder,
    tokenizer: Tokenizer,
    mesh: Mesh,
    prompts: Sequence[Tokens],
    orders: Sequence[AnswerSpec],
    stop_ids: Sequence[int],
    rows: int,
) -> list[str]:
    order = orders[0]
    tokens, lengths = pad_prompts([prompt.tolist() for prompt in prompts], row_multiple=rows)
    columns = bucket_length(tokens.shape[1] + order.max_new_tokens)
    special = {i: tokenizer.decode([i]) for i in (tokenizer.bos_id, tokenizer.eos_id)}
    special |= {i: name for name, i in tokenizer.special_tokens.items()}
    written: list[list[int]] = [[] for _ in prompts]
    over = np.arange(rows) >= len(prompts)
    with jax.set_mesh(mesh):
        state = start(decoder, tokens, lengths, columns=columns)
        for done in range(0, order.max_new_tokens, TOKENS_PER_CALL):
            state = replace(state, stopped=state.stopped | over)
            count = np.int32(min(TOKENS_PER_CALL, order.max_new_tokens - done))
            state, new = advance(
                decoder, state, count, stop_array(stop_ids), order.sampling.settings()
            )
            for number, ids in enumerate(np.asarray(new)[: len(prompts)]):
                for i in map(int, ids[ids != NO_TOKEN]):
                    over[number] |= special.get(i) in orders[number].stops
                    if i not in special and not over[number]:
                        written[number].append(i)
                text = tokenizer.decode(written[number])
                over[number] |= any(stop in text for stop in orders[number].stops)
            if (over | np.asarray(state.stopped)).all():
                break
    return [
        cut_at_stop(tokenizer.decode(ids), one.stops)
        for ids, one in zip(written, orders, strict=True)
    ]


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """``text`` before the first of ``stops``."""
    for stop in stops:
        text = text.split(stop)[0]
    return text
