"""Findings of a comparison with a server, as rows of a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from llama_cpt.serving.answers import (
    NEAR_TIE_MARGIN,
    TIE_MARGIN,
    AnswerComparison,
    Difference,
)
from llama_cpt.serving.prompts import Case
from llama_cpt.weights.prompt_format import PromptFormat

Result = Literal["equal", "tie", "near-tie", "differs", "not compared", "note"]
FLOAT32_DEVIATION, HALF_DEVIATION = 2e-3, 0.1
"""Maximum median deviation of log-probabilities, in nats, of a server that computes in float32, and
of a server that computes in bfloat16 or float16."""
SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class Finding:
    """A row of the table: a check, its result, and details on one line."""

    check: str
    result: Result
    detail: str
    is_check: bool = True
    """False for a row that gives details of the check above it."""


@dataclass(frozen=True)
class PromptPair:
    """The ids that llama_cpt makes of a prompt, and the ids or the count that a server reports."""

    case: Case
    ours: list[int]
    served: list[int] | int | None

    @property
    def is_text(self) -> bool:
        """True if the prompt is a text, and False if it is a conversation."""
        return isinstance(self.case.prompt, str)


def prompt_findings(pairs: Sequence[PromptPair], prompts: PromptFormat) -> Iterator[Finding]:
    """Yield the findings on BOS and on the ids of texts, conversations and control tokens."""
    bos_id = prompts.tokenizer.bos_id
    plain = [pair for pair in pairs if pair.case.kind != "control token"]
    typed = [pair for pair in pairs if pair.case.kind == "control token"]
    for is_text, name in ((True, "texts"), (False, "conversations")):
        group = [pair for pair in plain if pair.is_text == is_text]
        if group:
            yield _bos_finding(f"BOS, {name}", group, bos_id)
            yield _ids_finding(f"prompt ids, {name}", group, prompts)
    if typed:
        yield _typed_finding(typed, prompts)


def answer_findings(
    comparisons: Sequence[AnswerComparison], prompts: PromptFormat, max_tokens: int
) -> Iterator[Finding]:
    """Yield the findings on greedy ids, on the ends of answers and on the data type."""
    if not comparisons:
        reason = "the prompts of the server differ in length, so the answers are not comparable"
        yield Finding("greedy ids", "not compared", reason)
        return
    names = _Names(prompts)
    rows = [
        Finding("  answer", _kind(first), f"{one.answer.label}: {names.difference(first)}", False)
        for one in comparisons
        if (first := _first_token_difference(one, names.stop_ids))
    ]
    counts = {kind: sum(row.result == kind for row in rows) for kind in _KINDS}
    tokens = sum(len(one.answer.ids) for one in comparisons)
    found: list[Result] = [kind for kind in reversed(_KINDS) if counts[kind]]
    yield Finding(
        "greedy ids",
        found[0] if found else "equal",
        f"{len(comparisons) - len(rows)} of {len(comparisons)} answers equal "
        f"({tokens:,} tokens); a tie is a margin of at most {TIE_MARGIN:g}, a near-tie "
        f"{NEAR_TIE_MARGIN:g} nats",
    )
    yield from rows
    yield _end_finding(comparisons, names, max_tokens)
    yield _precision_finding(comparisons)


def _first_token_difference(
    comparison: AnswerComparison, stop_ids: Sequence[int]
) -> Difference | None:
    """Return the first difference that is not a tie, or the first tie if all are ties.

    Differences at the end of an answer are part of another finding.
    """
    found = [
        one for one in comparison.differences if one.served is not None and one.ours not in stop_ids
    ]
    real = (one for one in found if one.margin > NEAR_TIE_MARGIN)
    return next(real, found[0] if found else None)


def sampling_finding(generation: dict[str, Any], served: dict[str, float] | None) -> Finding:
    """Return the finding on the default sampling settings of ``generation_config.json``."""
    check = "sampling defaults"
    ours = {
        name: float(generation[name])
        for name in SAMPLING_FIELDS
        if isinstance(generation.get(name), int | float)
    }
    if generation.get("do_sample") is False:
        ours = {"temperature": 0.0}
    wanted = _settings(ours) or "no settings"
    if served is None:
        detail = f"the server does not report them; generation_config.json has {wanted}"
        return Finding(check, "not compared", detail)
    theirs = {name: served[name] for name in SAMPLING_FIELDS if name in served}
    detail = f"generation_config.json has {wanted}, the server uses {_settings(theirs)}"
    if not ours:
        return Finding(check, "note", detail)
    same = all(abs(theirs.get(name, -1.0) - value) < 1e-4 for name, value in ours.items())
    return Finding(check, "equal" if same else "differs", detail)


def _settings(values: dict[str, float]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in values.items())


class _Names:
    """Texts of tokens, for the details of a finding."""

    def __init__(self, prompts: PromptFormat) -> None:
        self._decode = prompts.tokenizer.decode
        self.stop_ids = prompts.stop_ids

    def token(self, one: int | None) -> str:
        """Return the id of a token and its text."""
        return "the end" if one is None else f"{one} {self._decode([one])!r}"

    def difference(self, found: Difference) -> str:
        """Return a description of ``found``."""
        return (
            f"token {found.position}: ours {self.token(found.ours)}, server "
            f"{self.token(found.served)}, margin {found.margin:.2g}"
        )


def _bos_finding(check: str, pairs: Sequence[PromptPair], bos_id: int | None) -> Finding:
    if bos_id is None:
        return Finding(check, "note", "the tokenizer has no BOS token")
    pairs = [pair for pair in pairs if isinstance(pair.served, list)]
    if not pairs:
        return Finding(check, "not compared", "the server does not report the ids of prompts")
    for pair in pairs:
        assert isinstance(pair.served, list)
        ours, theirs = _leading(pair.ours, bos_id), _leading(pair.served, bos_id)
        if ours != theirs:
            detail = f"the prompt begins with {theirs} BOS tokens, ours with {ours}"
            return Finding(check, "differs", detail)
    return Finding(check, "equal", f"the prompt begins with {ours} BOS tokens")


def _leading(ids: Sequence[int], bos_id: int | None) -> int:
    """Return the number of BOS tokens at the start of ``ids``."""
    return next((n for n, one in enumerate(ids) if one != bos_id), len(ids))


def _ids_finding(check: str, pairs: Sequence[PromptPair], prompts: PromptFormat) -> Finding:
    compared = [pair for pair in pairs if pair.served is not None]
    if not compared:
        return Finding(check, "not compared", "the server reports neither ids nor their number")
    differing = [pair for pair in compared if not _is_equal(pair, prompts.tokenizer.bos_id)]
    only_counts = sum(isinstance(pair.served, int) for pair in compared)
    what = f"{len(compared) - len(differing)} of {len(pairs)} prompts equal"
    if only_counts:
        what += f" (of {only_counts}, only the number of tokens is known)"
    if not differing:
        return Finding(check, "equal", what)
    first = differing[0]
    return Finding(check, "differs", f"{what}; {first.case.label}: {_explain(first, prompts)}")


def _is_equal(pair: PromptPair, bos_id: int | None) -> bool:
    """Return True if the ids or their numbers are equal; BOS tokens at the start do not count."""
    if isinstance(pair.served, int):
        return pair.served == len(pair.ours)
    assert pair.served is not None, "only prompts with a reply are compared"
    return _without_bos(pair.ours, bos_id) == _without_bos(pair.served, bos_id)


def _without_bos(ids: list[int], bos_id: int | None) -> list[int]:
    return ids[_leading(ids, bos_id) :]


def _explain(pair: PromptPair, prompts: PromptFormat) -> str:
    """Return a description of the first difference of a pair that is not equal."""
    if isinstance(pair.served, int):
        return f"ours {len(pair.ours)} tokens, server {pair.served}"
    assert pair.served is not None, "only prompts with a reply are compared"
    bos_id, names = prompts.tokenizer.bos_id, _Names(prompts)
    ours, theirs = _without_bos(pair.ours, bos_id), _without_bos(pair.served, bos_id)
    both = zip(ours, theirs, strict=False)
    at = next((n for n, (a, b) in enumerate(both) if a != b), min(len(ours), len(theirs)))
    a, b = (names.token(ids[at] if at < len(ids) else None) for ids in (ours, theirs))
    return f"token {at}: ours {a}, server {b} ({len(ours)} and {len(theirs)} tokens)"


def _typed_finding(pairs: Sequence[PromptPair], prompts: PromptFormat) -> Finding:
    """Return the finding on users who type the names of control tokens."""
    check = "typed control tokens"
    special = set(prompts.tokenizer.special_tokens.values())
    injected, changed, unknown = [], [], []
    for pair in pairs:
        if pair.served is None:
            unknown.append(pair)
        elif not _is_equal(pair, prompts.tokenizer.bos_id):
            # A server or a proxy can remove the name, which is safe.
            is_safe = isinstance(pair.served, list) and _count(
                _without_bos(pair.served, prompts.tokenizer.bos_id), special
            ) <= _count(_without_bos(pair.ours, prompts.tokenizer.bos_id), special)
            (changed if is_safe else injected).append(pair)
    labels = ", ".join(pair.case.label for pair in injected)
    if injected:
        detail = f"in the message of a user, the server treats {labels} as a control token"
        return Finding(check, "differs", f"{detail}; {_explain(injected[0], prompts)}")
    if len(unknown) == len(pairs):
        return Finding(check, "not compared", "the server does not report the ids of prompts")
    note = f"; the server changes the text of {len(changed)} messages" if changed else ""
    return Finding(check, "equal", f"{len(pairs)} names are ordinary text{note}")


def _count(ids: Sequence[int], special: set[int]) -> int:
    return sum(one in special for one in ids)


_KINDS: tuple[Result, ...] = ("tie", "near-tie", "differs")


def _kind(found: Difference) -> Result:
    if found.margin <= TIE_MARGIN:
        return "tie"
    return "near-tie" if found.margin <= NEAR_TIE_MARGIN else "differs"


def _end_finding(
    comparisons: Sequence[AnswerComparison], names: _Names, max_tokens: int
) -> Finding:
    """Return the finding on the tokens that end answers, and on ``finish_reason``."""
    check = "end of answers"
    for one in comparisons:
        if problem := _end_problem(one, names, max_tokens):
            return Finding(check, "differs", f"{one.answer.label}: {problem}")
    ties = [found for one in comparisons for found in _end_differences(one, names.stop_ids)]
    if ties:
        worst = max(ties, key=lambda found: found.margin)
        return Finding(check, _kind(worst), f"{len(ties)} ties; {names.difference(worst)}")
    ended = sum(one.answer.finish_reason == "stop" for one in comparisons)
    if not ended:
        return Finding(check, "not compared", f"no answer ended within {max_tokens} tokens")
    return Finding(check, "equal", f"{ended} of {len(comparisons)} answers end at the same token")


def _end_problem(one: AnswerComparison, names: _Names, max_tokens: int) -> str:
    """Return what is wrong with the end of an answer, or an empty string."""
    answer = one.answer
    if answer.finish_reason not in ("stop", "length"):
        return f"finish_reason is {answer.finish_reason!r}, not 'stop' or 'length'"
    if inner := [token for token in answer.ids if token in names.stop_ids]:
        return f"the server continues after {names.token(inner[0])}"
    for found in _end_differences(one, names.stop_ids):
        if found.margin > NEAR_TIE_MARGIN:
            what = "ends too early" if found.served is None else "continues after the end"
            return f"the server {what}; {names.difference(found)}"
    if answer.finish_reason == "length":
        if answer.end_id is not None:
            return f"finish_reason is 'length' after {names.token(answer.end_id)}"
        if answer.is_complete and len(answer.ids) < max_tokens:
            return f"finish_reason is 'length' after {len(answer.ids)} of {max_tokens} tokens"
    return ""


def _end_differences(one: AnswerComparison, stop_ids: Sequence[int]) -> list[Difference]:
    """Return the differences at which only the server or only llama_cpt ends the answer."""
    return [found for found in one.differences if found.served is None or found.ours in stop_ids]


def _precision_finding(comparisons: Sequence[AnswerComparison]) -> Finding:
    """Return the finding on the data type of the server, from its log-probabilities or ties."""
    check = "data type"
    deviations = [value for one in comparisons for value in one.deviations]
    if deviations:
        middle = median(deviations)
        detail = f"log-probabilities deviate from float32 by {middle:.2g} nats (median)"
        if middle <= FLOAT32_DEVIATION:
            return Finding(check, "note", f"{detail}: the server computes in float32")
        if middle <= HALF_DEVIATION:
            return Finding(check, "note", f"{detail}: the server computes in a 16-bit type")
        return Finding(check, "note", f"{detail}: the weights are quantized or different")
    margins = [found.margin for one in comparisons for found in one.differences]
    near = [margin for margin in margins if TIE_MARGIN < margin <= NEAR_TIE_MARGIN]
    if near:
        detail = f"{len(near)} near-ties: the server computes in a 16-bit type"
        return Finding(check, "note", detail)
    return Finding(check, "not compared", "the server does not report log-probabilities")
