"""Generation of answers in batches. An answer ends before its first stop string."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
import math
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from llama_cpt.data.tokenizer.base import Tokenizer
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
"""Maximum number of prompts per device in a batch."""
BATCH_PAIRS = 1 << 26
"""Maximum sum of squared padded lengths per device in a batch of several prompts.

The limit bounds the memory of attention scores: prompts of 4,096 tokens are in batches of 4.
"""
NEW_TOKENS = 256
"""Default maximum number of new tokens, the same as in lm-evaluation-harness."""


@dataclass(frozen=True)
class AnswerSpec:
    """The stop strings, maximum length and sampling settings of an answer."""

    stops: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling


def make_answer_spec(options: Mapping[str, Any], context_length: int) -> AnswerSpec:
    """Parse a task's ``generation_kwargs``.

    If the task requests ``context_length`` or more new tokens, the maximum is set to half of
    ``context_length``.
    """
    until = options.get("until") or []
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    count = next((options[name] for name in names if options.get(name)), NEW_TOKENS)
    # As in the harness, a temperature implies sampling unless do_sample is set.
    temperature = float(options.get("temperature", 1.0))
    sampled = options.get("do_sample", "temperature" in options) and temperature > 0
    return AnswerSpec(
        stops=tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop),
        max_new_tokens=count if count < context_length else context_length // 2,
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
    specs: Sequence[AnswerSpec],
    stop_ids: Sequence[int],
) -> Iterator[tuple[int, str]]:
    """Yield the index and answer of each prompt, batch by batch, the longest prompts first."""
    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    # The prompts of a batch have the same padded length, number of new tokens and sampling.
    groups: dict[tuple[int, int, Sampling], list[int]] = {}
    for number in sorted(range(len(prompts)), key=lambda n: -len(prompts[n])):
        spec = specs[number]
        size = bucket_length(len(prompts[number]))
        groups.setdefault((size, spec.max_new_tokens, spec.sampling), []).append(number)
    for (size, *_), numbers in groups.items():
        # All batches of a group have the same number of rows, so that one program is compiled. A
        # small group needs fewer rows.
        needed = 1 << (-(-len(numbers) // devices) - 1).bit_length()
        rows = min(ROWS, needed, max(1, BATCH_PAIRS // size**2))
        batch_size = rows * devices
        for first in range(0, len(numbers), batch_size):
            batch = numbers[first : first + batch_size]
            texts = _batch_answers(
                decoder,
                tokenizer,
                mesh,
                [prompts[n] for n in batch],
                [specs[n] for n in batch],
                stop_ids,
                batch_size,
            )
            yield from zip(batch, texts, strict=True)


def _batch_answers(
    decoder: Decoder,
    tokenizer: Tokenizer,
    mesh: Mesh,
    prompts: Sequence[Tokens],
    specs: Sequence[AnswerSpec],
    stop_ids: Sequence[int],
    rows: int,
) -> list[str]:
    """Return the answers to one batch of prompts, which is padded to ``rows`` rows."""
    spec = specs[0]
    tokens, lengths = pad_prompts([prompt.tolist() for prompt in prompts], row_multiple=rows)
    columns = bucket_length(tokens.shape[1] + spec.max_new_tokens)
    # Stop strings can be names of special tokens, which are not part of the decoded text.
    special = {i: name for name, i in tokenizer.special_tokens.items()}
    written: list[list[int]] = [[] for _ in prompts]
    stopped = np.arange(rows) >= len(prompts)
    with jax.set_mesh(mesh):
        state = start(decoder, tokens, lengths, columns=columns)
        for done in range(0, spec.max_new_tokens, TOKENS_PER_CALL):
            state = replace(state, stopped=state.stopped | stopped)
            count = np.int32(min(TOKENS_PER_CALL, spec.max_new_tokens - done))
            state, new = advance(
                decoder, state, count, stop_array(stop_ids), spec.sampling.settings()
            )
            for number, ids in enumerate(np.asarray(new)[: len(prompts)]):
                for i in map(int, ids[ids != NO_TOKEN]):
                    stopped[number] |= special.get(i) in specs[number].stops
                    if i not in special and not stopped[number]:
                        written[number].append(i)
                # Only the end of the answer can contain a stop string that was not there before.
                text = tokenizer.decode(written[number][-_searched(specs[number].stops) :])
                stopped[number] |= any(stop in text for stop in specs[number].stops)
            if (stopped | np.asarray(state.stopped)).all():
                break
    return [
        cut_at_stop(tokenizer.decode(ids), one.stops)
        for ids, one in zip(written, specs, strict=True)
    ]


def _searched(stops: Sequence[str]) -> int:
    """Return the number of tokens at the end of an answer that can contain a new stop string."""
    # A byte of the string can be a token, and the string can begin before the last tokens.
    longest = max((len(stop.encode("utf-8", "replace")) for stop in stops), default=0)
    return longest + 2 * TOKENS_PER_CALL


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """Return ``text`` up to the first occurrence of any of the strings ``stops``."""
    for stop in stops:
        text = text.split(stop)[0]
    return text
