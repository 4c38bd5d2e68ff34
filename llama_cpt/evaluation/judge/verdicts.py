"""Two models' answers compared blindly, pair by pair, by a person or a model.

Each judgement is a line of JSON Lines, written as it is made: a killed run goes on behind the last.
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
"""Which of the two answers, in the order shown, is better; none: the judge would not say."""
WORKERS = 4
"""Questions put to an endpoint at a time."""
ASKS = 3
"""Of one question, before its replies count as no verdict."""
MAX_INVALID_REPLIES = 10
"""Questions without a verdict, after which there is no point in going on."""
LONGEST_REASON = 2000

Prompt = tuple[Message, ...]


class InvalidReplyError(ValueError):
    """A reply without a verdict."""


class QuitJudging(Exception):  # noqa: N818
    """The person has had enough for now."""


@dataclass(frozen=True)
class AnswerPair:
    """Two models' answers to one prompt."""

    prompt: Prompt
    answers: tuple[str, str]

    @property
    def id(self) -> str:
        """Of this prompt with these answers."""
        said = [[(turn.role, turn.content) for turn in self.prompt], self.answers]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class BlindedPair:
    """What a judge sees: no names."""

    prompt: Prompt
    left: str
    right: str


@dataclass(frozen=True)
class Verdict:
    """A verdict and what the judge said of it."""

    choice: Choice
    reasons: str = ""


@dataclass(frozen=True)
class Judgement:
    """A line of the record."""

    pair: str
    swapped: bool
    """The second model's answer was shown first."""
    verdict: Choice
    judge: str
    reasons: str = ""

    @property
    def question(self) -> tuple[str, bool]:
        """What was asked."""
        return self.pair, self.swapped

    @property
    def points(self) -> float:
        """The first model's: 1, a half for a tie, 0."""
        if self.verdict == "tie":
            return 0.5
        return float((self.verdict == "a") != self.swapped)


@runtime_checkable
class Judge(Protocol):
    """A person or an endpoint."""

    @property
    def name(self) -> str:
        """For the record."""
        ...

    def rule(self, shown: BlindedPair) -> Verdict:
        """Raises RubbishError for a reply without a verdict, Quit to stop."""
        ...

    def stop(self) -> None:
        """Give up what is under way."""
        ...


class VerdictLog:
    """The judgements in a file, read and appended to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.judgements = list(read_lines(path, partial(from_dict, Judgement)))

    def of(self, pairs: Iterable[AnswerPair], judge: str) -> list[Judgement]:
        """The last one of ``judge`` on each of ``pairs`` in each order."""
        wanted = {pair.id for pair in pairs}
        found = [j for j in self.judgements if j.judge == judge and j.pair in wanted]
        return list({j.question: j for j in found}.values())

    def add(self, judgement: Judgement) -> None:
        """Kept once this returns."""
        with self._lock:
            append_line(self._path, asdict(judgement))
            self.judgements.append(judgement)


def make_questions(
    pairs: Sequence[AnswerPair], *, both_orders: bool
) -> list[tuple[AnswerPair, bool]]:
    """What is to be asked: pairs, and whether they are shown swapped.

    In one order each, it is drawn by the pair's id, always the same. Answers that do not differ are
    not asked about.
    """
    asked = []
    for pair in pairs:
        orders = (False, True) if both_orders else (bool(int(pair.id, 16) % 2),)
        asked += [(pair, swapped) for swapped in orders if not is_same(pair)]
    return asked


def is_same(pair: AnswerPair) -> bool:
    """Whether both models answer alike, which is a tie."""
    first, second = (answer.strip() for answer in pair.answers)
    return first == second


def pending(
    asked: Sequence[tuple[AnswerPair, bool]], record: VerdictLog, judge: str
) -> list[tuple[AnswerPair, bool]]:
    """What ``record`` holds no verdict of: a judge that said nothing is asked again."""
    done = {j.question for j in record.judgements if j.judge == judge and j.verdict != "none"}
    return [(pair, swapped) for pair, swapped in asked if (pair.id, swapped) not in done]


def judge_all(
    asked: Sequence[tuple[AnswerPair, bool]], judge: Judge, record: VerdictLog, *, workers: int
) -> None:
    """Put every question to ``judge`` and record what it says; returns early where it quits.

    Raises UserError where it gives ``MAX_INVALID_REPLIES`` no verdicts, or cannot be asked.
    """
    streak = _Streak(judge.name)
    asked_before = {j.question for j in record.judgements if j.judge == judge.name}
    halted = threading.Event()

    def one(pair: AnswerPair, swapped: bool) -> None:
        left, right = pair.answers[::-1] if swapped else pair.answers
        ruling = _ruling(judge, BlindedPair(pair.prompt, left, right))
        reasons = ruling.reasons[:LONGEST_REASON]
        record.add(Judgement(pair.id, swapped, ruling.choice, judge.name, reasons))
        # Some stay without a verdict for ever: those are no sign that the judge is out of order.
        if (pair.id, swapped) not in asked_before:
            streak.count(ruling)

    def one_of_many(pair: AnswerPair, swapped: bool) -> None:
        if halted.is_set():
            return
        try:
            one(pair, swapped)
        except BaseException:
            # Here, because this thread would take the next question before the caller knows.
            halted.set()
            raise

    if workers == 1:
        with contextlib.suppress(QuitJudging):
            for question in asked:
                one(*question)
        return
    pool = ThreadPoolExecutor(workers)
    with Progress("judged", float(len(asked)), "pairs") as progress:
        try:
            for done in as_completed([pool.submit(one_of_many, *question) for question in asked]):
                done.result()
                progress.update(1.0)
        finally:
            judge.stop()
            pool.shutdown(cancel_futures=True)


class _Streak:
    """No verdicts in a row."""

    def __init__(self, judge: str) -> None:
        self._judge, self._length, self._lock = judge, 0, threading.Lock()

    def count(self, ruling: Verdict) -> None:
        with self._lock:
            self._length = self._length + 1 if ruling.choice == "none" else 0
            if self._length >= MAX_INVALID_REPLIES:
                raise UserError(
                    f"{self._judge}: {self._length} questions in a row without a verdict, the last "
                    f"reply: {ruling.reasons[:120]!r}; name another judge."
                )


def _ruling(judge: Judge, shown: BlindedPair) -> Verdict:
    for _ in range(ASKS):
        try:
            return judge.rule(shown)
        except InvalidReplyError as error:
            last = str(error)
    return Verdict("none", last)
