"""Exact-match accuracy per language, with confidence intervals and the accuracy of guessing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
from pathlib import Path

from llama_cpt.config.fields import from_dict, option
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.text_files import json_lines, read_text


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers."""

    language: str
    question: str
    answers: tuple[str, ...]
    """Accepted answers; a model's answer is compared without its surrounding whitespace."""
    optional_suffix: str = option("", former_name="closing")
    """Text that is removed from the end of a model's answer before the comparison."""
    chance: float = 0.0
    """Probability that a random guess among plausible answers is correct."""


@dataclass(frozen=True)
class Accuracy:
    """The exact-match accuracy on the questions of one language."""

    questions: int
    correct: int
    with_suffix: int
    """Number of answers that end with the ``optional_suffix`` of their question."""
    chance: float
    """Mean of ``Question.chance`` over the questions."""

    @property
    def share(self) -> float:
        """Share of questions with a correct answer, from 0 to 1."""
        return self.correct / self.questions

    def interval(self) -> tuple[float, float]:
        """Return the 95 % Wilson score interval of ``share`` (Wilson 1927, JASA 22, eq. 6)."""
        z, n, p = 1.959964, self.questions, self.share
        center = (p + z * z / (2 * n)) / (1 + z * z / n)
        half_width = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, center - half_width), min(1.0, center + half_width)


def read_questions(path: str) -> tuple[Question, ...]:
    """Return the questions in a JSON Lines file.

    Each line is an object with the fields of ``Question``. Raises UserError if the file does not
    exist or has no questions, or if a line is not a valid question.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: file of questions does not exist; set an existing file.")
    questions = []
    for number, values in json_lines(read_text(path), path, "fix the line"):
        try:
            found = from_dict(Question, values, "question")
        except ValueError as error:
            raise UserError(f"{path}:{number}: not a question ({error}); fix it.") from None
        if not found.question or not found.answers:
            raise UserError(
                f"{path}:{number}: not a question (question or answers are empty); fix it."
            )
        questions.append(found)
    if not questions:
        raise UserError(f"{path}: has no questions; write one per line.")
    return tuple(questions)


def grade(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Accuracy]:
    """Return the accuracy by language; ``answers`` contains one answer per question."""
    found: dict[str, Accuracy] = {}
    for language in dict.fromkeys(question.language for question in questions):
        pairs = [
            (q, a.strip())
            for q, a in zip(questions, answers, strict=True)
            if q.language == language
        ]
        found[language] = Accuracy(
            questions=len(pairs),
            correct=sum(
                _without_suffix(answer, q.optional_suffix) in q.answers for q, answer in pairs
            ),
            with_suffix=sum(
                bool(q.optional_suffix) and answer.endswith(q.optional_suffix)
                for q, answer in pairs
            ),
            chance=sum(q.chance for q, _ in pairs) / len(pairs),
        )
    return found


def accuracy_table(by_stage: Mapping[str, Mapping[str, Accuracy]]) -> list[tuple[str, ...]]:
    """Return a table of text cells, the header first, with one row per stage and language."""
    rows = [("stage", "language", "correct", "95 % interval", "chance", "with suffix")]
    for stage, by_language in by_stage.items():
        for language, accuracy in by_language.items():
            low, high = accuracy.interval()
            rows.append(
                (
                    stage,
                    language,
                    f"{accuracy.correct} of {accuracy.questions} ({accuracy.share:.0%})",
                    f"{low:.0%} to {high:.0%}",
                    f"{accuracy.chance:.0%}",
                    f"{accuracy.with_suffix / accuracy.questions:.0%}",
                )
            )
    return rows


def _without_suffix(answer: str, suffix: str) -> str:
    return answer.removesuffix(suffix).strip() if suffix else answer
