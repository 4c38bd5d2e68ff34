"""A benchmark's questions put to a model, each scored and kept as soon as it is answered."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
import hashlib
import json
from pathlib import Path
import sys
import time
from typing import Any, Protocol, runtime_checkable

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task
from lm_eval.utils import env
import numpy as np

from llama_cpt.evaluation.benchmarks import Benchmark, runs_code
from llama_cpt.evaluation.harness import HarnessModel
from llama_cpt.evaluation.scores import BITS_PER_BYTE, LINES, ExampleScore, append_scores, unscored
from llama_cpt.runtime.distributed import allgather_strings, is_primary
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.progress import Progress

# The harness compiles a task's templates anew for every question: a minute for CMMLU.
env.from_string = lru_cache(env.from_string)

SEED = 1234
"""Of worked examples that are drawn; the harness's own."""
KEEP_SECONDS = 2.0
"""What is lost of an evaluation that is killed, at most, beside the batch under way."""


@runtime_checkable
class AnswerModel(Protocol):
    """``HarnessModel``, as far as questions need one."""

    cut: set[int]
    """Numbers of the requests, of the call under way, that lost their beginning."""

    def answers(
        self, kind: str, requests: Sequence[Instance]
    ) -> Iterator[tuple[int, tuple[float, bool] | float | str]]:
        """Number and answer of each request, as soon as it is known."""
        ...


@dataclass
class Question:
    """One example and what is asked of the model for it."""

    benchmark: str
    part: str
    task: Task
    instances: list[Instance]
    cut: bool = False
    """It was longer than the model's context."""

    @property
    def key(self) -> tuple[str, str]:
        """As in ``ExampleScore``."""
        return self.part, str(self.instances[0].doc_id)

    @property
    def shots(self) -> int:
        """Worked examples before the question."""
        return self.task.config.num_fewshot or 0

    @property
    def answered(self) -> bool:
        """Whether the model has answered all of it."""
        return all(instance.resps for instance in self.instances)


def make_questions(
    benchmark: Benchmark, *, chat: HarnessModel | None, limit: int | None
) -> list[Question]:
    """The examples of all parts, in order, ``limit`` of each part at most.

    ``chat`` is the model in whose chat template they are asked; None asks in plain text.
    """
    found = []
    for part, task in benchmark.parts.items():
        # For each model anew, so that all are asked the same.
        task.set_fewshot_seed(SEED)
        task.build_all_requests(
            limit=limit,
            apply_chat_template=chat is not None,
            fewshot_as_multiturn=chat is not None,
            chat_template=chat.apply_chat_template if chat else None,
            tokenizer_name=chat.tokenizer_name if chat else "",
        )
        by_example: dict[int, list[Instance]] = {}
        for instance in task.instances:
            by_example.setdefault(instance.doc_id, []).append(instance)
        for together in by_example.values():
            together.sort(key=lambda instance: instance.idx)
            found.append(Question(benchmark.name, part, task, together))
    return found


def answer_questions(
    questions: list[Question], model: AnswerModel, folder: Path, settings: Mapping[str, Any]
) -> None:
    """Put to ``model`` what has no score in ``folder`` yet; scores are added as they come."""
    name = questions[0].benchmark
    asked = dict(settings) | {"shots": questions[0].shots, "questions": fingerprint(questions)}
    left = unscored([question.key for question in questions], folder, name, asked)
    open_questions = [questions[number] for number in left]
    if not open_questions:
        return
    file = folder / f"{name}{LINES}"
    waiting: list[ExampleScore] = []
    kept, cut = time.monotonic(), 0
    with Progress(f"{folder.name} {name}", float(len(open_questions)), "examples") as progress:
        try:
            for question in _answered(open_questions, model):
                cut += question.cut
                if is_primary():
                    waiting.append(score_question(question))
                if runs_code(name):
                    # Not inside a collective: for the first it may take long.
                    allgather_strings("", "code was run")
                progress.update(1.0)
                if time.monotonic() - kept > KEEP_SECONDS:
                    append_scores(file, waiting)
                    waiting, kept = [], time.monotonic()
        finally:
            append_scores(file, waiting)
    if cut and is_primary():
        remedy = "; fewer --shots leave more room" if questions[0].shots else ""
        print(
            f"warning: {name}: {cut} of {len(open_questions)} questions were longer than the "
            f"model's context and lost their beginning{remedy}.",
            file=sys.stderr,
        )


def score_question(question: Question) -> ExampleScore:
    """By the task's first filter and first metric that is a mean of examples; the rest are details.

    Raises UserError where there is none.
    """
    values: dict[str, Any] = {}
    for one in question.task._filters:
        one.apply(question.instances)
        answers = [instance.filtered_resps[one.name] for instance in question.instances]
        metrics = question.task.process_results(question.instances[0].doc, answers)
        suffix = f",{one.name}" if len(question.task._filters) > 1 else ""
        values |= {f"{name}{suffix}": value for name, value in metrics.items()}
    group, number = question.key
    answers = [instance.resps[0] for instance in question.instances]
    if isinstance(answers[0], tuple):
        answers = [logprob for logprob, _ in answers]
    if BITS_PER_BYTE in values:
        logprob, size = values[BITS_PER_BYTE]
        score = {"metric": BITS_PER_BYTE, "score": -logprob / max(size, 1), "nats": -logprob}
        return ExampleScore(question.benchmark, group, number, bytes=int(size), **score)
    numbers = {n: float(v) for n, v in values.items() if isinstance(v, int | float | np.number)}
    metric = next((name for name in numbers if _is_mean(question.task, name)), None)
    if metric is None:
        raise UserError(
            f"task {question.benchmark} has no metric that is a mean of its examples "
            f"({', '.join(values)}): it cannot be compared example by example."
        )
    score = numbers.pop(metric)
    detail: dict[str, Any] = {"answers": answers} | ({"metrics": numbers} if numbers else {})
    if question.cut:
        detail["cut"] = True
    return ExampleScore(
        question.benchmark,
        group,
        number,
        metric,
        score,
        chance=_chance(question, metric),
        less_is_better=not question.task.higher_is_better().get(metric.partition(",")[0], True),
        detail=detail,
    )


def _is_mean(task: Task, metric: str) -> bool:
    return task.aggregation().get(metric.partition(",")[0]) is mean


def _chance(question: Question, metric: str) -> float | None:
    """What a guess among the options scores."""
    task = question.task
    if not metric.startswith("acc") or task.config.doc_to_choice is None:
        return None
    return 1 / len(task.doc_to_choice(question.instances[0].doc))


def fingerprint(questions: list[Question]) -> str:
    """Of each part's first question as it is asked, and of the data that it is from.

    Not of how many are asked: a higher limit goes on where a lower one ended.
    """
    told = hashlib.sha256()
    for part, question in {q.part: q for q in reversed(questions)}.items():
        documents = list(question.task.eval_docs)
        asked = [part, [instance.args for instance in question.instances], documents]
        told.update(json.dumps(asked, default=str, sort_keys=True).encode())
    return told.hexdigest()[:16]


def _answered(questions: list[Question], model: AnswerModel) -> Iterator[Question]:
    by_kind: dict[str, list[tuple[Question, Instance]]] = {}
    for question in questions:
        for instance in question.instances:
            by_kind.setdefault(instance.request_type, []).append((question, instance))
    for kind, pairs in by_kind.items():
        for number, answer in model.answers(kind, [instance for _, instance in pairs]):
            question, instance = pairs[number]
            instance.resps.append(answer)
            question.cut |= number in model.cut
            if question.answered:
                yield question
