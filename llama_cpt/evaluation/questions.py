"""Benchmark questions: requests to a model, and scoring and storage of the answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask, Task
import numpy as np

from llama_cpt.evaluation.benchmarks import Benchmark, runs_code
from llama_cpt.evaluation.harness import HarnessModel
from llama_cpt.evaluation.scores import BITS_PER_BYTE, LINES, ExampleScore, ScoreWriter, unscored
from llama_cpt.runtime.distributed import allgather_strings, is_primary
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.progress import Progress

logger = logging.getLogger(__name__)

SEED = 1234
"""Seed for drawing worked examples, the same as in lm-evaluation-harness."""


@runtime_checkable
class AnswerModel(Protocol):
    """The part of the interface of ``HarnessModel`` that this module uses."""

    cut: set[int]
    """Indices of the requests of the current ``answers`` call that were truncated on the left."""

    def answers(
        self, kind: str, requests: Sequence[Instance], /
    ) -> Iterator[tuple[int, tuple[float, bool] | float | str]]:
        """Yield the index and answer of each request as the answers arrive, in any order."""
        ...


@dataclass
class Question:
    """An example of a benchmark with its requests to the model."""

    benchmark: str
    part: str
    task: Task
    instances: list[Instance]
    fingerprint: str = ""
    """Hash of the benchmark, as the function ``fingerprint`` returns it."""
    cut: bool = False
    """True if the question was longer than the model's context and was truncated on the left."""

    @property
    def key(self) -> tuple[str, str]:
        """Group and identifier of the example, as in ``ExampleScore.key``."""
        return self.part, str(self.instances[0].doc_id)

    @property
    def shots(self) -> int:
        """Number of worked examples before the question."""
        return self.task.config.num_fewshot or 0

    @property
    def answered(self) -> bool:
        """True if the model has answered all requests of the question."""
        return all(instance.resps for instance in self.instances)


def make_questions(
    benchmark: Benchmark, *, chat: HarnessModel | None, limit: int | None
) -> list[Question]:
    """Return the questions of ``benchmark``, part by part.

    The result contains up to ``limit`` questions, spread over the parts, or all if ``limit`` is
    None. Prompts are rendered with the chat template of the model ``chat``, or are plain text if
    ``chat`` is None.
    """
    found: list[Question] = []
    first: list[Question] = []
    sizes = [len(task.eval_docs) for task in benchmark.parts.values()]
    quotas = spread_limit(sizes, limit)
    for (part, task), quota in zip(benchmark.parts.items(), quotas, strict=True):
        # Reset the seed, so that every model gets the same worked examples.
        task.set_fewshot_seed(SEED)
        try:
            task.build_all_requests(
                # The fingerprint needs a question of every part.
                limit=max(quota, 1),
                apply_chat_template=chat is not None,
                fewshot_as_multiturn=chat is not None,
                chat_template=chat.apply_chat_template if chat else None,
                tokenizer_name=chat.tokenizer_name if chat else "",
            )
        except UserError as error:
            raise UserError(f"task {benchmark.name}: {error}") from None
        by_example: dict[int | None, list[Instance]] = {}
        for instance in task.instances:
            by_example.setdefault(instance.doc_id, []).append(instance)
        for instances in by_example.values():
            instances.sort(key=lambda instance: instance.idx)
        questions = [Question(benchmark.name, part, task, one) for one in by_example.values()]
        first += questions[:1]
        found += questions[:quota]
    digest = fingerprint(first)
    return [replace(question, fingerprint=digest) for question in found]


def spread_limit(sizes: Sequence[int], limit: int | None) -> list[int]:
    """Return the number of questions per part, whose sum is ``limit`` or all if that is less.

    ``sizes`` contains the number of questions of each part. The parts take turns in a fixed random
    order, so a higher limit adds questions and removes none.
    """
    if limit is None:
        return list(sizes)
    order = np.random.default_rng(SEED).permutation(len(sizes))
    turns = sorted((turn, at) for at, part in enumerate(order) for turn in range(sizes[part]))
    chosen = [int(order[at]) for _, at in turns[:limit]]
    return [chosen.count(part) for part in range(len(sizes))]


def answer_questions(
    questions: list[Question], model: AnswerModel, folder: Path, settings: Mapping[str, Any]
) -> None:
    """Answer and score the questions that have no score in ``folder`` yet.

    New scores are appended to ``BENCHMARK.jsonl`` in ``folder`` every ``KEEP_SECONDS`` seconds.
    """
    name = questions[0].benchmark
    settings = dict(settings) | {"shots": questions[0].shots, "questions": questions[0].fingerprint}
    numbers = unscored([question.key for question in questions], folder, name, settings)
    pending = [questions[number] for number in numbers]
    if not pending:
        return
    cut = 0
    with (
        Progress(f"{folder.name} {name}", float(len(pending)), "examples") as progress,
        ScoreWriter(folder / f"{name}{LINES}") as scores,
    ):
        for question in answered(pending, model):
            cut += question.cut
            if is_primary():
                scores.add(score_question(question))
            if runs_code(name):
                # Only the primary process runs the generated code, which can take minutes. The
                # other processes wait here; in a collective of the next batch they would time out.
                allgather_strings("", "generated code")
            progress.update(1.0)
    if cut and is_primary():
        remedy = "; set fewer --shots" if questions[0].shots else ""
        logger.warning(
            f"{name}: {cut} of {len(pending)} questions were longer than the model's context and "
            f"were truncated on the left{remedy}."
        )


def score_question(question: Question) -> ExampleScore:
    """Score a question by the first metric of its task that is averaged over examples.

    Metrics of the task's first filter have precedence. All other values are stored in ``detail``.
    Raises UserError if no metric is averaged over examples.
    """
    values = _metric_values(question)
    group, number = question.key
    answers = [instance.resps[0] for instance in question.instances]
    if isinstance(answers[0], tuple):
        answers = [logprob for logprob, _ in answers]
    if BITS_PER_BYTE in values:
        logprob, size = values[BITS_PER_BYTE]
        return ExampleScore(
            question.benchmark,
            group,
            number,
            BITS_PER_BYTE,
            -logprob / max(size, 1),
            nats=-logprob,
            bytes=int(size),
        )
    numbers = {n: float(v) for n, v in values.items() if isinstance(v, int | float | np.number)}
    aggregation = question.task.aggregation()
    means = (n for n in numbers if _by_metric(aggregation, n, default=None) is mean)
    metric = next(means, None)
    if metric is None:
        raise UserError(
            f"task {question.benchmark} has no metric that is a mean over examples "
            f"({', '.join(values)}), so models cannot be compared by example; run it with lm_eval."
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
        less_is_better=not _by_metric(question.task.higher_is_better(), metric, default=True),
        detail=detail,
    )


def _metric_values(question: Question) -> dict[str, Any]:
    """Return the value of each metric; keys are ``METRIC,FILTER`` if there are several filters."""
    values: dict[str, Any] = {}
    # The harness has no public name for the filters of a task.
    filters = vars(question.task)["_filters"]
    for one in filters:
        one.apply(question.instances)
        answers = [instance.filtered_resps[one.name] for instance in question.instances]
        metrics = question.task.process_results(question.instances[0].doc, answers) or {}
        suffix = f",{one.name}" if len(filters) > 1 else ""
        values |= {f"{name}{suffix}": value for name, value in metrics.items()}
    return values


def _by_metric(values: Mapping[str, Any] | None, metric: str, *, default: Any) -> Any:
    """Return the entry of ``values`` for ``metric``, whose suffix ``,FILTER`` is ignored."""
    return (values or {}).get(metric.partition(",")[0], default)


def _chance(question: Question, metric: str) -> float | None:
    """Return the accuracy of a random guess among the answer options of ``question``.

    Returns None if the question has no answer options or ``metric`` is not an accuracy.
    """
    task = question.task
    if not isinstance(task, ConfigurableTask) or task.config.doc_to_choice is None:
        return None
    if not metric.startswith("acc"):
        return None
    return 1 / len(task.doc_to_choice(question.instances[0].doc))


def fingerprint(questions: list[Question]) -> str:
    """Return a hash of each part's documents and of the requests of the part's first question.

    The hash does not depend on the number of questions, so that an evaluation with a higher limit
    reuses existing scores.
    """
    digest = hashlib.sha256()
    for part, question in {q.part: q for q in reversed(questions)}.items():
        documents = list(question.task.eval_docs)
        content = [part, [instance.args for instance in question.instances], documents]
        digest.update(json.dumps(content, default=str, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def answered(questions: list[Question], model: AnswerModel) -> Iterator[Question]:
    """Yield each question as soon as ``model`` has answered all its requests, in any order."""
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
