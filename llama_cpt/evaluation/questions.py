"""Questions of a benchmark, answered by a model, scored, and saved as they are answered."""

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

# The harness compiles a task's templates again for every question, which takes a minute for CMMLU.
env.from_string = lru_cache(env.from_string)

SEED = 1234
"""Seed of randomly drawn worked examples, as in the harness."""
KEEP_SECONDS = 2.0
"""Maximum time between writes of new scores, which a kill would lose with the current batch."""


@runtime_checkable
class AnswerModel(Protocol):
    """The part of ``HarnessModel`` that questions need."""

    cut: set[int]
    """Numbers of the requests of the current call whose beginning was truncated."""

    def answers(
        self, kind: str, requests: Sequence[Instance]
    ) -> Iterator[tuple[int, tuple[float, bool] | float | str]]:
        """Yield the number and answer of each request as soon as it is known."""
        ...


@dataclass
class Question:
    """An example of a benchmark with the requests to the model."""

    benchmark: str
    part: str
    task: Task
    instances: list[Instance]
    cut: bool = False
    """Whether it was longer than the model's context and lost its beginning."""

    @property
    def key(self) -> tuple[str, str]:
        """Key of the example, as in ``ExampleScore``."""
        return self.part, str(self.instances[0].doc_id)

    @property
    def shots(self) -> int:
        """Number of worked examples before the question."""
        return self.task.config.num_fewshot or 0

    @property
    def answered(self) -> bool:
        """Whether the model has answered all requests."""
        return all(instance.resps for instance in self.instances)


def make_questions(
    benchmark: Benchmark, *, chat: HarnessModel | None, limit: int | None
) -> list[Question]:
    """Return the examples of all parts in order, at most ``limit`` of each part.

    ``chat`` is the model whose chat template is used; None asks in plain text.
    """
    found = []
    for part, task in benchmark.parts.items():
        # Seed again for each model, so that all get the same worked examples.
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
        for instances in by_example.values():
            instances.sort(key=lambda instance: instance.idx)
            found.append(Question(benchmark.name, part, task, instances))
    return found


def answer_questions(
    questions: list[Question], model: AnswerModel, folder: Path, settings: Mapping[str, Any]
) -> None:
    """Answer the questions without a score in ``folder``; append scores as they are computed."""
    name = questions[0].benchmark
    settings = dict(settings) | {"shots": questions[0].shots, "questions": fingerprint(questions)}
    numbers = unscored([question.key for question in questions], folder, name, settings)
    pending = [questions[number] for number in numbers]
    if not pending:
        return
    file = folder / f"{name}{LINES}"
    waiting: list[ExampleScore] = []
    written, cut = time.monotonic(), 0
    with Progress(f"{folder.name} {name}", float(len(pending)), "examples") as progress:
        try:
            for question in _answered(pending, model):
                cut += question.cut
                if is_primary():
                    waiting.append(score_question(question))
                if runs_code(name):
                    # Only the primary process runs the code, which may take long. The others wait
                    # here, because a collective of the next batch would time out.
                    allgather_strings("", "generated code")
                progress.update(1.0)
                if time.monotonic() - written > KEEP_SECONDS:
                    append_scores(file, waiting)
                    waiting, written = [], time.monotonic()
        finally:
            append_scores(file, waiting)
    if cut and is_primary():
        remedy = "; set fewer --shots" if questions[0].shots else ""
        print(
            f"warning: {name}: {cut} of {len(pending)} questions were longer than the model's "
            f"context and lost their beginning{remedy}.",
            file=sys.stderr,
        )


def score_question(question: Question) -> ExampleScore:
    """Score a question by the task's first metric that is a mean over examples.

    The first filter of the task counts; all other values go into ``detail``. Raises UserError if no
    metric is a mean over examples.
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
            f"({', '.join(values)}) and cannot be compared example by example; run it with lm_eval."
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
    """Return the expected score of a guess among the options, or None without options."""
    task = question.task
    if not metric.startswith("acc") or task.config.doc_to_choice is None:
        return None
    return 1 / len(task.doc_to_choice(question.instances[0].doc))


def fingerprint(questions: list[Question]) -> str:
    """Return a hash of the data of each part and of its first question as it is asked.

    The number of questions is left out, so that a higher limit resumes where a lower one ended.
    """
    digest = hashlib.sha256()
    for part, question in {q.part: q for q in reversed(questions)}.items():
        documents = list(question.task.eval_docs)
        content = [part, [instance.args for instance in question.instances], documents]
        digest.update(json.dumps(content, default=str, sort_keys=True).encode())
    return digest.hexdigest()[:16]


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
