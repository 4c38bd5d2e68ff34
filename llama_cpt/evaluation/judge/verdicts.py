"""Blind judging of two models' answers, pair by pair, by a person or a model.

Each judgement is appended to a JSON Lines file at once, so that a run that was killed resumes after
the last one.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
import contextlib
from dataclasses import asdict, dataclass
from functools import partial
import hashlib
import json
from pathlib import Path
import threading
from typing import Literal, Protocol, runtime_checkable

from llama_cpt.config.fields import from_dict
from llama_cpt.data.chat.conversations import Message
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.jsonl import append_line, read_lines
from llama_cpt.runtime.progress import Progress

Choice = Literal["a", "b", "tie", "none"]
"""The better of the two answers in the order shown; ``none`` if the judge gave no verdict."""
WORKERS = 4
"""Number of concurrent requests to an endpoint."""
ASKS = 3
"""Number of times that a question is asked before its verdict is ``none``."""
MAX_INVALID_REPLIES = 10
"""Number of consecutive questions without a verdict that ends the command."""
LONGEST_REASON = 2000

Prompt = tuple[Message, ...]


class InvalidReplyError(ValueError):
    """A reply without a verdict."""


class QuitJudging(Exception):  # noqa: N818
    """The person quits; the command resumes later."""


@dataclass(frozen=True)
class AnswerPair:
    """Two models' answers to one prompt."""

    prompt: Prompt
    answers: tuple[str, str]

    @property
    def id(self) -> str:
        """Hash of the prompt and the answers."""
        content = [[(turn.role, turn.content) for turn in self.prompt], self.answers]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class BlindedPair:
    """A pair as the judge sees it, without the names of the models."""

    prompt: Prompt
    left: str
    right: str


@dataclass(frozen=True)
class Verdict:
    """The choice of a judge with its reasons."""

    choice: Choice
    reasons: str = ""


@dataclass(frozen=True)
class Judgement:
    """A line of the log of verdicts."""

    pair: str
    swapped: bool
    """Whether the second model's answer was shown first."""
    verdict: Choice
    judge: str
    reasons: str = ""

    @property
    def question(self) -> tuple[str, bool]:
        """The pair and the order in which it was shown."""
        return self.pair, self.swapped

    @property
    def points(self) -> float:
        """Points of the first model: 1 for a win, 0.5 for a tie, 0 for a loss."""
        if self.verdict == "tie":
            return 0.5
        return float((self.verdict == "a") != self.swapped)


@runtime_checkable
class Judge(Protocol):
    """A person or an endpoint that compares answers."""

    @property
    def name(self) -> str:
        """The name of the judge in the log."""
        ...

    def rule(self, shown: BlindedPair) -> Verdict:
        """Return a verdict; raise InvalidReplyError without one, QuitJudging to stop."""
        ...

    def stop(self) -> None:
        """Cancel requests that are under way."""
        ...


class VerdictLog:
    """A log of judgements in a file; ``add`` may be called from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.judgements = list(read_lines(path, partial(from_dict, Judgement)))

    def of(self, pairs: Iterable[AnswerPair], judge: str) -> list[Judgement]:
        """Return the last judgement of ``judge`` on each of ``pairs`` in each order."""
        wanted = {pair.id for pair in pairs}
        found = [j for j in self.judgements if j.judge == judge and j.pair in wanted]
        return list({j.question: j for j in found}.values())

    def add(self, judgement: Judgement) -> None:
        """Append a judgement, which is on disk when this returns."""
        with self._lock:
            append_line(self._path, asdict(judgement))
            self.judgements.append(judgement)


def make_questions(
    pairs: Sequence[AnswerPair], *, both_orders: bool
) -> list[tuple[AnswerPair, bool]]:
    """Return the questions on ``pairs``: each pair with whether it is shown swapped.

    With a single order, the pair's hash decides it, so that it is the same in every call. Equal
    answers give no question.
    """
    questions = []
    for pair in pairs:
        orders = (False, True) if both_orders else (bool(int(pair.id, 16) % 2),)
        questions += [(pair, swapped) for swapped in orders if not is_same(pair)]
    return questions


def is_same(pair: AnswerPair) -> bool:
    """Return whether the two answers are equal but for surrounding whitespace."""
    first, second = (answer.strip() for answer in pair.answers)
    return first == second


def pending(
    questions: Sequence[tuple[AnswerPair, bool]], log: VerdictLog, judge: str
) -> list[tuple[AnswerPair, bool]]:
    """Return the questions on which ``log`` has no verdict of ``judge`` other than ``none``."""
    done = {j.question for j in log.judgements if j.judge == judge and j.verdict != "none"}
    return [(pair, swapped) for pair, swapped in questions if (pair.id, swapped) not in done]


def judge_all(
    questions: Sequence[tuple[AnswerPair, bool]], judge: Judge, log: VerdictLog, *, workers: int
) -> None:
    """Ask ``judge`` every question and append its verdicts to ``log``; return early if it quits.

    Raises UserError after ``MAX_INVALID_REPLIES`` consecutive questions without a verdict, or if
    the judge cannot be reached.
    """
    streak = _InvalidStreak(judge.name)
    asked_before = {j.question for j in log.judgements if j.judge == judge.name}
    halted = threading.Event()

    def one(pair: AnswerPair, swapped: bool) -> None:
        left, right = pair.answers[::-1] if swapped else pair.answers
        verdict = _ask(judge, BlindedPair(pair.prompt, left, right))
        reasons = verdict.reasons[:LONGEST_REASON]
        log.add(Judgement(pair.id, swapped, verdict.choice, judge.name, reasons))
        # Some questions never get a verdict. A later call asks exactly those again, one after the
        # other, which does not mean that the judge is broken.
        if (pair.id, swapped) not in asked_before:
            streak.count(verdict)

    def one_of_many(pair: AnswerPair, swapped: bool) -> None:
        if halted.is_set():
            return
        try:
            one(pair, swapped)
        except BaseException:
            # Set the event here: this worker would take its next question before the caller does.
            halted.set()
            raise

    if workers == 1:
        with contextlib.suppress(QuitJudging):
            for question in questions:
                one(*question)
        return
    pool = ThreadPoolExecutor(workers)
    with Progress("judged", float(len(questions)), "pairs") as progress:
        try:
            futures = [pool.submit(one_of_many, *question) for question in questions]
            for future in as_completed(futures):
                future.result()
                progress.update(1.0)
        finally:
            judge.stop()
            pool.shutdown(cancel_futures=True)


class _InvalidStreak:
    """The number of consecutive questions without a verdict."""

    def __init__(self, judge: str) -> None:
        self._judge, self._length, self._lock = judge, 0, threading.Lock()

    def count(self, verdict: Verdict) -> None:
        with self._lock:
            self._length = self._length + 1 if verdict.choice == "none" else 0
            if self._length >= MAX_INVALID_REPLIES:
                raise UserError(
                    f"{self._judge}: {self._length} questions in a row without a verdict, the last "
                    f"reply: {verdict.reasons[:120]!r}; set another --judge-model."
                )


def _ask(judge: Judge, shown: BlindedPair) -> Verdict:
    for _ in range(ASKS):
        try:
            return judge.rule(shown)
        except InvalidReplyError as error:
            last = str(error)
    return Verdict("none", last)
