"""Packing of chat examples into rows, and truncation and counts of long examples."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from llama_cpt.data.chat.examples import ChatExample, ChatSpec, Segment
from llama_cpt.data.chat.lengths import drop_or_truncate, with_kl_completions
from llama_cpt.data.chat.packing import TOKEN, pack_examples, record_fields
from llama_cpt.runtime.errors import UserError
from tests.data.packed_segments import found_segments

KINDS = ("conversations", "preferences", "unpaired")
LENGTH = 24
BOS = 1


def chat_spec(kind, too_long="drop"):
    return ChatSpec(kind, "llama3", "assistant", too_long, False)


@st.composite
def chat_examples(draw, kind, longest):
    """Strategy for examples with random tokens; the prompts of a pair are equal."""
    made = []
    for number in range(draw(st.integers(1, 30))):
        random = np.random.default_rng(draw(st.integers(0, 1000)) + 1000 * number)
        prompt = np.r_[BOS, random.integers(2, 9, random.integers(1, longest // 2))]
        answers = [random.integers(9, 1000, random.integers(1, longest // 2)) for _ in range(2)]
        segments = tuple(
            Segment(
                np.r_[prompt, answer].astype(np.uint32),
                np.arange(len(prompt) + len(answer)) >= len(prompt),
                0 if kind == "conversations" else len(prompt),
            )
            for answer in (answers if kind == "preferences" else answers[:1])
        )
        made.append(ChatExample(segments, bool(random.integers(2))))
    return made


def rows_of(records, kind):
    names = record_fields(kind)
    return [
        dict(zip(names, np.frombuffer(record, TOKEN).reshape(len(names), -1), strict=True))
        for record in records
    ]


def as_placed(segment):
    tokens, loss_mask = segment.tokens.tolist(), segment.loss_mask.astype(int).tolist()
    return tuple(tokens[:-1]), tuple(tokens[1:]), tuple(loss_mask[1:])


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_every_example_is_in_one_row_once(kind, data):
    given_examples = data.draw(chat_examples(kind, LENGTH // 2))
    if kind == "unpaired":
        given_examples = [
            ChatExample(example.segments * 2, example.good) for example in given_examples
        ]
    given_examples = [
        example
        for example in given_examples
        if sum(len(segment.tokens) - 1 for segment in example.segments) <= LENGTH
    ]
    counts = Counter()
    records = list(pack_examples(given_examples, chat_spec(kind), LENGTH, counts))
    members = 1 if kind == "conversations" else 2
    found, most = [], 0
    for row in rows_of(records, kind):
        assert not row["loss_mask"][row["segment_ids"] == 0].any()
        segments = found_segments(row)
        assert len(segments) % members == 0
        most = max(most, len(segments) // members)
        for first in range(1, len(segments) + 1, members):
            columns = row["segment_ids"] == first
            good = row["good"][columns][0] if kind == "unpaired" else 0
            found.append((tuple(segments[first + m] for m in range(members)), good))
    expected = [
        (tuple(map(as_placed, example.segments)), example.good * (kind == "unpaired"))
        for example in given_examples
    ]
    assert Counter(found) == Counter(expected)
    placed = [one for example in expected for one in example[0]]
    assert counts["places"] == sum(len(tokens) for tokens, _, _ in placed)
    assert counts["learnt_tokens"] == sum(sum(mask) for _, _, mask in placed)
    assert counts["units"] == most
    assert counts["prompt_tokens_twice"] == sum(
        segment.prompt_tokens for example in given_examples for segment in example.segments[1:]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("too_long", ["drop", "truncate_start", "truncate_end"])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_examples_longer_than_a_row_are_cut_or_dropped(kind, too_long, data):
    """Long examples are truncated at the configured end, or dropped and counted."""
    given_examples = data.draw(chat_examples(kind, 2 * LENGTH))
    counts = Counter()
    kept = list(drop_or_truncate(given_examples, chat_spec(kind, too_long), LENGTH, counts))
    left = iter(kept)
    after = next(left, None)
    whole = cut = lost = 0
    for example in given_examples:
        positions = sum(len(s.tokens) - 1 for s in example.segments)
        if kind == "unpaired":
            positions += example.segments[0].prompt_tokens
        if after is example:
            assert positions <= LENGTH
        else:
            assert positions > LENGTH
            if after is None or not is_cut_of(after, example, too_long):
                lost += 1
                continue
            cut += 1
            assert sum(len(s.tokens) - 1 for s in after.segments) <= LENGTH
        whole += 1
        after = next(left, None)
    assert after is None and whole == len(kept)
    assert counts["truncated"] == cut and counts["too_long"] + counts["nothing_to_learn"] == lost
    tokens = [sum(len(s.tokens) for u in us for s in u.segments) for us in (given_examples, kept)]
    assert counts["dropped_tokens"] == tokens[0] - tokens[1]
    if too_long == "drop":
        assert not cut


def is_cut_of(after, before, too_long):
    """Return whether ``after`` is ``before`` truncated as ``too_long`` says."""
    for a, b in zip(after.segments, before.segments, strict=True):
        lost = len(b.tokens) - len(a.tokens)
        if too_long == "truncate_end":
            kept, prompt_tokens = b.tokens[: len(a.tokens)], b.prompt_tokens
        else:
            kept = np.r_[b.tokens[:1], b.tokens[lost + 1 :]]
            prompt_tokens = max(b.prompt_tokens - lost, 0)
        if not np.array_equal(a.tokens, kept) or a.prompt_tokens != prompt_tokens:
            return False
    return all(a.loss_mask[1:].any() for a in after.segments)


def rated(prompt, answer, good=True):
    tokens = np.array([BOS, *prompt, *answer], np.uint32)
    prompt_tokens = 1 + len(prompt)
    return ChatExample(
        (Segment(tokens, np.arange(len(tokens)) >= prompt_tokens, prompt_tokens),), good
    )


def test_mismatch_is_the_next_answer_to_another_prompt():
    given_examples = [
        rated([2], [20, 21]),
        rated([2], [30], False),
        rated([3], [40, 41, 42]),
        rated([4, 4], [50]),
        rated([2], [60]),
    ]
    counts = Counter()
    made = list(with_kl_completions(given_examples, 100, counts))
    assert [example.segments[0].tokens.tolist() for example in made] == [
        example.segments[0].tokens.tolist() for example in given_examples
    ]
    assert [example.segments[1].tokens.tolist() for example in made] == [
        [BOS, 2, 40, 41, 42],
        [BOS, 2, 40, 41, 42],
        [BOS, 3, 50],
        [BOS, 4, 4, 60],
        [BOS, 2, 40, 41, 42],
    ]
    assert [example.good for example in made] == [True, False, True, True, True]
    assert counts["mismatches_cut"] == 0
    # 3 positions of the answer and 1 of the prompt leave 1 and 2 for the mismatched completions.
    cut = list(with_kl_completions(given_examples[:1] + given_examples[2:3], 6, counts))
    assert cut[0].segments[1].tokens.tolist() == [BOS, 2, 40, 41]
    assert cut[1].segments[1].tokens.tolist() == [BOS, 3, 20]
    assert counts["mismatches_cut"] == 2
    with pytest.raises(UserError, match="answers to two prompts"):
        list(with_kl_completions(given_examples[:2], 100, counts))
