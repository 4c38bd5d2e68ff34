"""Blind judging of two models' answers, pair by pair, by a person or a model.

A question to the judge is a pair of answers in one of the two orders.

Each judgment is appended to a JSON Lines file as soon as it is made. If the command is killed, the
next call continues after the last judgment in the file.
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
"""Number of replies without a verdict after which the verdict on a question is ``none``."""
MAX_INVALID_REPLIES = 10
"""Number of consecutive questions without a verdict after which the command fails."""
LONGEST_REASON = 2000
"""Maximum length of the saved reasons in characters."""

Prompt = tuple[Message, ...]
"""The turns of a conversation; the last turn is the message to answer."""


class InvalidReplyError(ValueError):
    """Raised if a reply of the judge contains no valid verdict."""


class QuitJudging(Exception):  # noqa: N818
    """Raised if the person at the terminal quits."""


@dataclass(frozen=True)
class AnswerPair:
    """The answers of two models to the same prompt."""

    prompt: Prompt
    answers: tuple[str, str]

    @property
    def id(self) -> str:
        """Hash of the prompt and both answers."""
        content = [[(turn.role, turn.content) for turn in self.prompt], self.answers]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class BlindedPair:
    """A pair of answers as shown to the judge, without the names of the models."""

    prompt: Prompt
    left: str
    right: str


@dataclass(frozen=True)
class Verdict:
    """A judge's choice and the reasons for it. If the judge is a person, the reasons are empty."""

    choice: Choice
    reasons: str = ""


@dataclass(frozen=True)
class Judgment:
    """A line of the log of verdicts."""

    pair: str
    """``AnswerPair.id`` of the judged pair."""
    swapped: bool
    """True if the second model's answer was shown first."""
    verdict: Choice
    judge: str
    reasons: str = ""

    @property
    def question(self) -> tuple[str, bool]:
        """Identifier of the pair, and whether the second model's answer was shown first."""
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
        """Name of the judge in the log of verdicts."""
        ...

    def rule(self, shown: BlindedPair) -> Verdict:
        """Return the verdict on a pair of answers.

        Raises InvalidReplyError if a reply contains no verdict, and QuitJudging if the person
        quits.
        """
        ...

    def stop(self) -> None:
        """Cancel pending requests."""
        ...


class VerdictLog:
    """A log of judgments in a JSON Lines file. ``add`` is thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.judgments = list(read_lines(path, partial(from_dict, Judgment)))

    def of(self, pairs: Iterable[AnswerPair], judge: str) -> list[Judgment]:
        """Return the last judgment by ``judge`` for each pair in ``pairs`` and each order."""
        wanted = {pair.id for pair in pairs}
        found = [j for j in self.judgments if j.judge == judge and j.pair in wanted]
        return list({j.question: j for j in found}.values())

    def add(self, judgment: Judgment) -> None:
        """Append a judgment to the file and sync it to disk."""
        with self._lock:
            append_line(self._path, asdict(judgment))
            self.judgments.append(judgment)


def make_questions(
    pairs: Sequence[AnswerPair], *, both_orders: bool
) -> list[tuple[AnswerPair, bool]]:
    """Return the questions for the judge as (pair, swapped).

    If ``both_orders`` is False, the hash of a pair determines the order of the pair's answers, so
    that the order is the same in every call. There is no question about a pair of equal answers.
    """
    questions = []
    for pair in pairs:
        orders = (False, True) if both_orders else (bool(int(pair.id, 16) % 2),)
        questions += [(pair, swapped) for swapped in orders if not is_same(pair)]
    return questions


def is_same(pair: AnswerPair) -> bool:
    """Return whether the two answers are equal, ignoring surrounding whitespace."""
    first, second = (answer.strip() for answer in pair.answers)
    return first == second


def pending(
    questions: Sequence[tuple[AnswerPair, bool]], log: VerdictLog, judge: str
) -> list[tuple[AnswerPair, bool]]:
    """Return the questions that ``judge`` has not answered in ``log``.

    A question with the verdict ``none`` counts as not answered.
    """
    done = {j.question for j in log.judgments if j.judge == judge and j.verdict != "none"}
    return [(pair, swapped) for pair, swapped in questions if (pair.id, swapped) not in done]


def judge_all(
    questions: Sequence[tuple[AnswerPair, bool]], judge: Judge, log: VerdictLog, *, workers: int
) -> None:
    """Send every question to ``judge`` and append the verdicts to ``log``.

    Returns early if the person who judges quits. Raises UserError after ``MAX_INVALID_REPLIES``
    consecutive questions without a verdict, or if the judge's endpoint cannot be reached.
    """
    streak = _InvalidStreak(judge.name)
    asked_before = {j.question for j in log.judgments if j.judge == judge.name}
    halted = threading.Event()

    def one(pair: AnswerPair, swapped: bool) -> None:
        left, right = pair.answers[::-1] if swapped else pair.answers
        verdict = _ask(judge, BlindedPair(pair.prompt, left, right))
        reasons = verdict.reasons[:LONGEST_REASON]
        log.add(Judgment(pair.id, swapped, verdict.choice, judge.name, reasons))
        # Some questions never get a verdict. A later call repeats only these questions, so they are
        # not counted: several of them in a row do not mean that the judge is broken.
        if (pair.id, swapped) not in asked_before:
            streak.count(verdict)

    def one_of_many(pair: AnswerPair, swapped: bool) -> None:
        if halted.is_set():
            return
        try:
            one(pair, swapped)
        except BaseException:
            # Set the event here, because this worker would start its next question before the
            # caller receives the exception.
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
    """A thread-safe count of consecutive questions without a verdict."""

    def __init__(self, judge: str) -> None:
        self._judge, self._length, self._lock = judge, 0, threading.Lock()

    def count(self, verdict: Verdict) -> None:
        with self._lock:
            self._length = self._length + 1 if verdict.choice == "none" else 0
            if self._length >= MAX_INVALID_REPLIES:
                raise UserError(
                    f"{self._judge}: {self._length} questions in a row without a verdict (last "
                    f"reply: {verdict.reasons[:120]!r}); set another --judge-model."
                )


def _ask(judge: Judge, shown: BlindedPair) -> Verdict:
    for _ in range(ASKS):
        try:
            return judge.rule(shown)
        except InvalidReplyError as error:
            last = str(error)
    return Verdict("none", last)
