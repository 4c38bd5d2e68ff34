"""Truncation of chats that are longer than a row, and mismatched completions for KTO.

The functions count all dropped examples and tokens.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from llama_cpt.data.chat.examples import ChatExample, ChatSpec, Segment
from llama_cpt.runtime.errors import UserError

# Minimum number of tokens that a mismatched completion adds to its prompt.
_MIN_KL_COMPLETION_TOKENS = 1


def drop_or_truncate(
    examples: Iterable[ChatExample], spec: ChatSpec, length: int, counts: Counter[str]
) -> Iterator[ChatExample]:
    """Yield the examples. Examples of more than ``length`` positions are dropped or truncated.

    ``spec.too_long`` selects between dropping and truncation. Updates ``counts``: ``examples`` (all
    examples), ``too_long`` (dropped examples), ``truncated`` (truncated examples),
    ``nothing_to_learn`` (examples dropped because truncation makes them unusable) and
    ``dropped_tokens``.
    """
    for example in examples:
        counts["examples"] += 1
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
    examples: Iterable[ChatExample], length: int, counts: Counter[str]
) -> Iterator[ChatExample]:
    """Yield each rated answer with a mismatched completion for KTO's estimate of the KL term.

    The mismatched completion is the prompt followed by the next answer to a different prompt (arXiv
    2402.01306, section 4.1). For the last answers of the corpus, the search for an answer to a
    different prompt continues at the start of the corpus. Adds the number of completions that are
    truncated to fit in the row to ``counts["mismatches_cut"]``. Raises UserError if all prompts are
    equal.
    """
    # Answers to the current prompt and their ratings, kept until an answer to a different prompt.
    waiting: list[Segment] = []
    goods: list[bool] = []
    # The first answer to each of the first two prompts, used at the end of the corpus.
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
                "prompt; add records with different prompts."
            )
        yield ChatExample((one, _kl_completion(one, other, length, counts)), judged)


def _num_positions(example: ChatExample, spec: ChatSpec) -> int:
    """Return the number of row positions that ``example`` takes.

    For a rated answer, the number includes the shortest mismatched completion.
    """
    positions = sum(len(segment.tokens) - 1 for segment in example.segments)
    if spec.kind == "unpaired":
        positions += example.segments[0].prompt_tokens - 1 + _MIN_KL_COMPLETION_TOKENS
    return positions


def _num_tokens(example: ChatExample) -> int:
    return sum(len(segment.tokens) for segment in example.segments)


def _truncate(example: ChatExample, spec: ChatSpec, length: int) -> ChatExample | None:
    """Return ``example`` truncated to ``length`` positions, or None if it becomes unusable.

    An example is usable if each segment has a target that counts in the loss, and if the two
    segments of a pair differ.
    """
    excess = _num_positions(example, spec) - length
    if spec.too_long == "truncate_start":
        # The prompt of a rated answer occurs a second time, before the mismatched completion.
        copies = len(example.segments) + (spec.kind == "unpaired")
        segments = tuple(_drop_start(s, -(-excess // copies)) for s in example.segments)
    else:
        segments = _drop_ends(example.segments, excess)
    kept = tuple(s for s in segments if s and s.loss_mask[1:].any())
    if len(kept) < len(segments):
        return None
    if len(kept) == 2 and np.array_equal(kept[0].tokens, kept[1].tokens):
        return None
    return ChatExample(kept, example.good)


def _drop_start(segment: Segment, count: int) -> Segment | None:
    """Return ``segment`` without the ``count`` tokens that follow its first token (usually BOS).

    Returns None if the prompt is too short, because tokens of an answer are never removed.
    """
    if segment.prompt_tokens and count >= segment.prompt_tokens - 1:
        return None
    keep = np.r_[0, count + 1 : len(segment.tokens)]
    prompt_tokens = max(segment.prompt_tokens - count, 0)
    return Segment(segment.tokens[keep], segment.loss_mask[keep], prompt_tokens)


def _drop_ends(segments: tuple[Segment, ...], excess: int) -> tuple[Segment | None, ...]:
    """Return the segments after removing a total of ``excess`` tokens from their ends.

    In a pair, the longer segment is first truncated to the length of the shorter segment. If more
    tokens must be removed, half of them are removed from each segment.
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
    """Return the first ``size`` tokens of ``segment``; None if they contain no answer."""
    if size <= segment.prompt_tokens:
        return None
    return Segment(segment.tokens[:size], segment.loss_mask[:size], segment.prompt_tokens)


def _same_prompt(one: Segment, other: Segment) -> bool:
    return np.array_equal(one.tokens[: one.prompt_tokens], other.tokens[: other.prompt_tokens])


def _kl_completion(own: Segment, other: Segment, length: int, counts: Counter[str]) -> Segment:
    """Return the prompt of ``own`` with the answer of ``other``, truncated to fit in the row."""
    prompt, answer = own.prompt_tokens, slice(other.prompt_tokens, None)
    room = length - (len(own.tokens) - 1) - (prompt - 1)
    tokens, loss_mask = other.tokens[answer], other.loss_mask[answer]
    counts["mismatches_cut"] += len(tokens) > room
    return Segment(
        np.concatenate([own.tokens[:prompt], tokens[:room]]),
        np.concatenate([own.loss_mask[:prompt], loss_mask[:room]]),
        prompt,
    )
