"""Tasks of the chat suite: prompts from data files, and the check of an answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import hashlib
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from llama_cpt.evaluation.chat_suite.instructions import follows
from llama_cpt.evaluation.chat_suite.languages import check_language
from llama_cpt.evaluation.chat_suite.refusals import PHRASES, is_refusal
from llama_cpt.evaluation.scores import RIGHT_LANGUAGE
from llama_cpt.runtime.text_files import json_lines, read_text

INSTRUCTIONS, LANGUAGES, RECALL = "chat_instructions", "chat_languages", "chat_recall"
HARMFUL, HARMLESS = "chat_refusals_harmful", "chat_refusals_harmless"
IFEVAL = "ifeval"
"""Name of the harness's task that replaces ``chat_instructions`` if its data can be loaded."""
NAMES = (IFEVAL, INSTRUCTIONS, LANGUAGES, HARMFUL, HARMLESS, RECALL)
"""Names of all tasks of the suite, in the order of the table."""
FOLLOWED, REFUSED = "followed", "refused"
"""Names of the metrics of instructions and refusals."""
Check = Callable[[str], dict[str, Any]]
"""A function of an answer that returns the values of metrics by name."""


@dataclass(frozen=True)
class SuitePrompt:
    """A prompt with the check of its answer."""

    group: str
    """Language of the prompt, or its length in tokens; ``--limit`` takes groups in turn."""
    id: str
    """Identifier in the group."""
    text: str
    check: Check
    detail: dict[str, Any]
    """Values that are stored with the score, such as the kind of the instruction."""


@dataclass(frozen=True)
class SuiteTask:
    """A task of the suite. Each score is 0 or 1."""

    name: str
    metric: str
    """Name of the metric that is the score."""
    answer_tokens: int
    """Maximum length of an answer in tokens."""
    prompts: tuple[SuitePrompt, ...]
    digest: str
    """Hash of the data from which all prompts and checks of the task are made."""
    less_is_better: bool = False


def fixed_tasks() -> list[SuiteTask]:
    """Return the tasks whose prompts do not depend on the model."""
    return [instructions_task(), languages_task(), *refusal_tasks()]


def instructions_task() -> SuiteTask:
    """Return the task of checkable instructions."""
    rows, digest = _read("instructions.jsonl")
    prompts = [
        SuitePrompt(
            row["language"],
            f"{row['kind']} {number}",
            row["prompt"],
            lambda answer, row=row: {FOLLOWED: follows(answer, row["checks"], row["language"])},
            {"kind": row["kind"]},
        )
        for number, row in enumerate(rows, 1)
    ]
    return SuiteTask(INSTRUCTIONS, FOLLOWED, 256, tuple(prompts), digest)


def languages_task() -> SuiteTask:
    """Return the task of questions whose answer must be in the language of the question."""
    rows, digest = _read("languages.jsonl")
    prompts = [
        SuitePrompt(
            row["language"],
            str(number),
            row["prompt"],
            lambda answer, row=row: check_language(answer, row["language"]),
            {},
        )
        for number, row in enumerate(rows, 1)
    ]
    return SuiteTask(LANGUAGES, RIGHT_LANGUAGE, 128, tuple(prompts), digest)


def refusal_tasks() -> list[SuiteTask]:
    """Return the task of harmful requests and the task of harmless requests that look harmful."""
    rows, digest = _read("refusals.jsonl", PHRASES)
    tasks = []
    for name, harmful in ((HARMFUL, True), (HARMLESS, False)):
        prompts = [
            SuitePrompt(
                row["language"],
                f"{row['category']} {number}",
                row["prompt"],
                lambda answer: {REFUSED: is_refusal(answer)},
                {"category": row["category"]},
            )
            for number, row in enumerate(rows, 1)
            if row["harmful"] is harmful
        ]
        tasks.append(
            SuiteTask(name, REFUSED, 64, tuple(prompts), digest, less_is_better=not harmful)
        )
    return tasks


def first_prompts(prompts: Sequence[SuitePrompt], limit: int | None) -> list[SuitePrompt]:
    """Return up to ``limit`` prompts, or all if ``limit`` is None; groups are taken in turn.

    The prompts of a limit are among the prompts of any higher limit.
    """
    groups: dict[str, list[SuitePrompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.group, []).append(prompt)
    turns = chain.from_iterable(zip_longest(*groups.values()))
    return [prompt for prompt in turns if prompt is not None][:limit]


def _read(name: str, rules: str = "") -> tuple[list[dict[str, Any]], str]:
    """Return the records of a data file in this folder, and a hash of the file and ``rules``."""
    text = read_text(file := Path(__file__).with_name(name))
    rows = [row for _, row in json_lines(text, str(file), "install llama_cpt again")]
    return rows, hashlib.sha256(f"{text}{rules}".encode()).hexdigest()[:16]
