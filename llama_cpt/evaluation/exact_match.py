"""Questions with right answers: how many are answered exactly, beside chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import json
import math
from pathlib import Path

from llama_cpt.config.fields import from_dict, option
from llama_cpt.runtime.errors import UserError


@dataclass(frozen=True)
class Question:
    """One question of an examination."""

    language: str
    question: str
    answers: tuple[str, ...]
    """All that is right; compared to the last character, spaces at the ends aside."""
    optional_suffix: str = option("", former_name="closing")
    """What may stand behind the answer, and is counted."""
    chance: float = 0.0
    """How often a guess is right that knows the kind of question only."""


@dataclass(frozen=True)
class Accuracy:
    """The outcome for one language."""

    questions: int
    correct: int
    with_suffix: int
    """Answers that end with the closing."""
    chance: float

    @property
    def share(self) -> float:
        """Of the questions, answered right."""
        return self.correct / self.questions

    def interval(self) -> tuple[float, float]:
        """95 % of the share (Wilson 1927, JASA 22, eq. 6)."""
        z, n, p = 1.959964, self.questions, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        spread = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - spread), min(1.0, middle + spread)


def read_questions(path: str) -> tuple[Question, ...]:
    """The questions of a JSON Lines file, fields as in ``Question``.

    Raises UserError, naming the line, for what is no question.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such examination.")
    questions = []
    for number, line in enumerate(Path(path).read_text("utf-8").strip().split("\n"), 1):
        try:
            found = from_dict(Question, json.loads(line), "question")
        except (ValueError, UserError) as error:
            raise UserError(f"{path}:{number}: not a question ({error}).") from None
        if not found.question or not found.answers:
            raise UserError(f"{path}:{number}: not a question (it asks or answers nothing).")
        questions.append(found)
    if not questions:
        raise UserError(f"{path}: holds no question.")
    return tuple(questions)


def grade(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Accuracy]:
    """By language, the mark of ``answers``, one to each question."""
    found: dict[str, Accuracy] = {}
    for language in dict.fromkeys(question.language for question in questions):
        pairs = [
            (q, a.strip())
            for q, a in zip(questions, answers, strict=True)
            if q.language == language
        ]
        found[language] = Accuracy(
            questions=len(pairs),
            correct=sum(_bare(answer, q.optional_suffix) in q.answers for q, answer in pairs),
            with_suffix=sum(
                bool(q.optional_suffix) and answer.endswith(q.optional_suffix)
                for q, answer in pairs
            ),
            chance=sum(q.chance for q, _ in pairs) / len(pairs),
        )
    return found


def accuracy_table(by_stage: Mapping[str, Mapping[str, Accuracy]]) -> list[tuple[str, ...]]:
    """Rows of text: stage, language, right, its interval, chance, closing."""
    rows = [("stage", "language", "right", "95 % interval", "chance", "with the closing")]
    for stage, by_language in by_stage.items():
        for language, mark in by_language.items():
            low, high = mark.interval()
            rows.append(
                (
                    stage,
                    language,
                    f"{mark.correct} of {mark.questions} ({mark.share:.0%})",
                    f"{low:.0%} to {high:.0%}",
                    f"{mark.chance:.0%}",
                    f"{mark.with_suffix / mark.questions:.0%}",
                )
            )
    return rows


def _bare(answer: str, closing: str) -> str:
    return answer.removesuffix(closing).strip() if closing else answer
