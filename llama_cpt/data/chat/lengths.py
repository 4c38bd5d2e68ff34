"""What is done with chats that a row cannot hold; nothing is lost without being counted."""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from llama_cpt.data.chat.examples import ChatExample, ChatSpec, Segment
from llama_cpt.runtime.errors import UserError

# A judged answer's mismatch has one token at least.
_MISMATCH_TOKENS = 1


def drop_or_truncate(
    units: Iterable[ChatExample], recipe: ChatSpec, length: int, counts: Counter
) -> Iterator[ChatExample]:
    """The units that ``length`` places hold, truncated where the recipe says so.

    Counted: units ``too_long`` and left out, ``truncated``, with ``nothing_to_learn`` left; and
    ``dropped_tokens``.
    """
    for unit in units:
        places = _places(unit, recipe)
        if places <= length:
            yield unit
            continue
        kept = None if recipe.too_long == "drop" else _truncated(unit, recipe, length)
        counts["dropped_tokens"] += _tokens(unit) - (_tokens(kept) if kept else 0)
        if kept:
            counts["truncated"] += 1
            yield kept
        else:
            counts["too_long" if recipe.too_long == "drop" else "nothing_to_learn"] += 1


def with_kl_completions(
    units: Iterable[ChatExample], length: int, counts: Counter
) -> Iterator[ChatExample]:
    """Each judged answer with its mismatch: its prompt, and the next answer to another prompt.

    The last ones take the first such answer. ``counts["mismatches_cut"]``: mismatches that lose
    their end because the row cannot hold them. Raises UserError where there is but one prompt.
    """
    waiting: list[Segment] = []
    goods: list[bool] = []
    first: list[Segment] = []
    for (segment,), good in units:
        if waiting and not _same_prompt(waiting[0], segment):
            for one, judged in zip(waiting, goods, strict=True):
                yield ChatExample((one, _mismatch(one, segment, length, counts)), judged)
            waiting, goods = [], []
        if not first or (len(first) == 1 and not _same_prompt(first[0], segment)):
            first.append(segment)
        waiting.append(segment)
        goods.append(good)
    for one, judged in zip(waiting, goods, strict=True):
        other = next((s for s in first if not _same_prompt(s, one)), None)
        if other is None:
            raise UserError(
                "kto needs answers to two prompts of a corpus; one of them has but one."
            )
        yield ChatExample((one, _mismatch(one, other, length, counts)), judged)


def _places(unit: ChatExample, recipe: ChatSpec) -> int:
    places = sum(len(segment.tokens) - 1 for segment in unit.segments)
    if recipe.kind == "unpaired":
        places += unit.segments[0].prompt_tokens - 1 + _MISMATCH_TOKENS
    return places


def _tokens(unit: ChatExample) -> int:
    return sum(len(segment.tokens) for segment in unit.segments)


def _truncated(unit: ChatExample, recipe: ChatSpec, length: int) -> ChatExample | None:
    """``unit`` cut to ``length`` places, or None where nothing is left to learn."""
    excess = _places(unit, recipe) - length
    if recipe.too_long == "truncate_start":
        # The prompt of a judged answer is there twice, its own and its mismatch's.
        copies = len(unit.segments) + (recipe.kind == "unpaired")
        segments = tuple(_without_start(s, -(-excess // copies)) for s in unit.segments)
    else:
        segments = _without_ends(unit.segments, excess)
    if not all(s and s.loss_mask[1:].any() for s in segments):
        return None
    if len(segments) == 2 and np.array_equal(segments[0].tokens, segments[1].tokens):
        return None
    return ChatExample(segments, unit.good)


def _without_start(segment: Segment, count: int) -> Segment | None:
    """Without ``count`` tokens after the first, BOS as a rule; answers stay whole."""
    if segment.prompt_tokens and count >= segment.prompt_tokens - 1:
        return None
    keep = np.r_[0, count + 1 : len(segment.tokens)]
    prompt_tokens = max(segment.prompt_tokens - count, 0)
    return Segment(segment.tokens[keep], segment.loss_mask[keep], prompt_tokens)


def _without_ends(segments: tuple[Segment, ...], excess: int) -> tuple[Segment | None, ...]:
    """Without ``excess`` tokens at the end: of a pair, the longer loses first."""
    sizes = [len(segment.tokens) for segment in segments]
    if len(sizes) == 2:
        long, short = (0, 1) if sizes[0] >= sizes[1] else (1, 0)
        alone = min(excess, sizes[long] - sizes[short])
        sizes[long] -= alone + -(-(excess - alone) // 2)
        sizes[short] -= (excess - alone) // 2
    else:
        sizes[0] -= excess
    return tuple(_first(s, size) for s, size in zip(segments, sizes, strict=True))


def _first(segment: Segment, size: int) -> Segment | None:
    if size <= segment.prompt_tokens:
        return None
    return Segment(segment.tokens[:size], segment.loss_mask[:size], segment.prompt_tokens)


def _same_prompt(one: Segment, other: Segment) -> bool:
    return np.array_equal(one.tokens[: one.prompt_tokens], other.tokens[: other.prompt_tokens])


def _mismatch(own: Segment, other: Segment, length: int, counts: Counter) -> Segment:
    """``own``'s prompt with ``other``'s answer, as much of it as the row holds."""
    prompt, answer = own.prompt_tokens, slice(other.prompt_tokens, None)
    room = length - (len(own.tokens) - 1) - (prompt - 1)
    tokens, learnt = other.tokens[answer], other.loss_mask[answer]
    counts["mismatches_cut"] += len(tokens) > room
    return Segment(
        np.concatenate([own.tokens[:prompt], tokens[:room]]),
        np.concatenate([own.loss_mask[:prompt], learnt[:room]]),
        prompt,
    )
