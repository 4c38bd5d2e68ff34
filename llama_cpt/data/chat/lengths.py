"""Dropping and truncation of chats that do not fit a row, and KTO's mismatched completions.

Everything that is dropped is counted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from llama_cpt.data.chat.examples import ChatExample, ChatSpec, Segment
from llama_cpt.runtime.errors import UserError

# Minimum length of the mismatched completion next to a rated answer.
_MIN_KL_COMPLETION_TOKENS = 1


def drop_or_truncate(
    examples: Iterable[ChatExample], spec: ChatSpec, length: int, counts: Counter
) -> Iterator[ChatExample]:
    """Yield the examples that fit ``length`` positions, truncated if the spec allows it.

    Updates ``counts``: examples ``too_long`` (dropped), ``truncated`` and ``nothing_to_learn``
    (dropped because truncation leaves no target), and ``dropped_tokens``.
    """
    for example in examples:
        positions = _num_positions(example, spec)
        if positions <= length:
            yield example
            continue
        kept = None if spec.too_long == "drop" else _truncate(example, spec, length)
        counts["dropped_tokens"] += _num_tokens(example) - (_num_tokens(kept) if kept else 0)
        if kept:
            counts["truncated"] += 1
            yield kept
        else:
            counts["too_long" if spec.too_long == "drop" else "nothing_to_learn"] += 1


def with_kl_completions(
    examples: Iterable[ChatExample], length: int, counts: Counter
) -> Iterator[ChatExample]:
    """Yield each rated answer with a mismatched completion for KTO's estimate of the KL term.

    The mismatch is the same prompt with the next answer to a different prompt (arXiv 2402.01306,
    section 4.1); the last answers take the first such answer of the corpus. Updates
    ``counts["mismatches_cut"]``, the mismatches that are cut to fit the row. Raises UserError if
    all prompts are equal.
    """
    # Answers that wait for an answer to a different prompt, and their ratings.
    waiting: list[Segment] = []
    goods: list[bool] = []
    # The first answers to the first two prompts: the end of the corpus wraps around to them.
    first: list[Segment] = []
    for (segment,), good in examples:
        if waiting and not _same_prompt(waiting[0], segment):
            for one, judged in zip(waiting, goods, strict=True):
                yield ChatExample((one, _kl_completion(one, segment, length, counts)), judged)
            waiting, goods = [], []
        if not first or (len(first) == 1 and not _same_prompt(first[0], segment)):
            first.append(segment)
        waiting.append(segment)
        goods.append(good)
    for one, judged in zip(waiting, goods, strict=True):
        other = next((s for s in first if not _same_prompt(s, one)), None)
        if other is None:
            raise UserError(
                "loss=kto needs answers to two prompts in each corpus, but one corpus has only one "
                "prompt; add records with other prompts."
            )
        yield ChatExample((one, _kl_completion(one, other, length, counts)), judged)


def _num_positions(example: ChatExample, spec: ChatSpec) -> int:
    """Return the positions of a row that ``example`` takes, with room for a mismatch."""
    positions = sum(len(segment.tokens) - 1 for segment in example.segments)
    if spec.kind == "unpaired":
        positions += example.segments[0].prompt_tokens - 1 + _MIN_KL_COMPLETION_TOKENS
    return positions


def _num_tokens(example: ChatExample) -> int:
    return sum(len(segment.tokens) for segment in example.segments)


def _truncate(example: ChatExample, spec: ChatSpec, length: int) -> ChatExample | None:
    """Return ``example`` cut to ``length`` positions; None if nothing is left to learn."""
    excess = _num_positions(example, spec) - length
    if spec.too_long == "truncate_start":
        # A rated answer's prompt occurs twice: once more in front of the mismatched completion.
        copies = len(example.segments) + (spec.kind == "unpaired")
        segments = tuple(_drop_start(s, -(-excess // copies)) for s in example.segments)
    else:
        segments = _drop_ends(example.segments, excess)
    if not all(s and s.loss_mask[1:].any() for s in segments):
        return None
    if len(segments) == 2 and np.array_equal(segments[0].tokens, segments[1].tokens):
        return None
    return ChatExample(segments, example.good)


def _drop_start(segment: Segment, count: int) -> Segment | None:
    """Return ``segment`` without ``count`` tokens after the first (usually BOS).

    Answers stay whole: returns None if the prompt is too short.
    """
    if segment.prompt_tokens and count >= segment.prompt_tokens - 1:
        return None
    keep = np.r_[0, count + 1 : len(segment.tokens)]
    prompt_tokens = max(segment.prompt_tokens - count, 0)
    return Segment(segment.tokens[keep], segment.loss_mask[keep], prompt_tokens)


def _drop_ends(segments: tuple[Segment, ...], excess: int) -> tuple[Segment | None, ...]:
    """Return the segments without ``excess`` tokens at their ends.

    In a pair the longer segment is cut first, down to the length of the other.
    """
    sizes = [len(segment.tokens) for segment in segments]
    if len(sizes) == 2:
        long, short = (0, 1) if sizes[0] >= sizes[1] else (1, 0)
        alone = min(excess, sizes[long] - sizes[short])
        sizes[long] -= alone + -(-(excess - alone) // 2)
        sizes[short] -= (excess - alone) // 2
    else:
        sizes[0] -= excess
    return tuple(_keep_start(s, size) for s, size in zip(segments, sizes, strict=True))


def _keep_start(segment: Segment, size: int) -> Segment | None:
    if size <= segment.prompt_tokens:
        return None
    return Segment(segment.tokens[:size], segment.loss_mask[:size], segment.prompt_tokens)


def _same_prompt(one: Segment, other: Segment) -> bool:
    return np.array_equal(one.tokens[: one.prompt_tokens], other.tokens[: other.prompt_tokens])


def _kl_completion(own: Segment, other: Segment, length: int, counts: Counter) -> Segment:
    """Return the prompt of ``own`` with the answer of ``other``, cut to what the row holds."""
    prompt, answer = own.prompt_tokens, slice(other.prompt_tokens, None)
    room = length - (len(own.tokens) - 1) - (prompt - 1)
    tokens, loss_mask = other.tokens[answer], other.loss_mask[answer]
    counts["mismatches_cut"] += len(tokens) > room
    return Segment(
        np.concatenate([own.tokens[:prompt], tokens[:room]]),
        np.concatenate([own.loss_mask[:prompt], loss_mask[:room]]),
        prompt,
    )
