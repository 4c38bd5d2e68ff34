"""The chat suite: scoring of a model's answers to the prompts of all tasks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import logging
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from llama_cpt.data.chat.conversations import Message
from llama_cpt.evaluation.benchmarks import Benchmark, load_benchmark
from llama_cpt.evaluation.chat_suite.recall import (
    SHORTEST,
    Haystack,
    lengths,
    read_haystack,
    recall_task,
)
from llama_cpt.evaluation.chat_suite.tasks import (
    IFEVAL,
    INSTRUCTIONS,
    SuitePrompt,
    SuiteTask,
    first_prompts,
    fixed_tasks,
)
from llama_cpt.evaluation.harness import HarnessModel
from llama_cpt.evaluation.named_models import LoadedModel
from llama_cpt.evaluation.questions import (
    AnswerModel,
    answer_questions,
    make_questions,
)
from llama_cpt.evaluation.scores import LINES, ExampleScore, ScoreWriter, unscored
from llama_cpt.runtime.distributed import allgather_strings, is_primary
from llama_cpt.runtime.errors import UsageError, UserError
from llama_cpt.runtime.extras import require_packages
from llama_cpt.runtime.progress import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suite:
    """The prompts of the suite, as far as they do not depend on the model, and its limits."""

    tasks: tuple[SuiteTask, ...]
    ifeval: Benchmark | None
    """IFEval; None if it cannot be loaded."""
    haystack: Haystack
    longest: int | None
    """Length of the longest prompt in tokens; None for the context length of the model."""
    limit: int | None
    """Maximum number of prompts per task; None for all."""


def load_suite(*, limit: int | None, haystack: str, longest: int | None) -> Suite:
    """Load the suite, with IFEval if its data can be loaded, or else our own instructions.

    Raises UserError if the language identifier is not installed or the file ``haystack`` cannot be
    used, and UsageError if ``longest`` is too small.
    """
    if longest is not None and longest < SHORTEST:
        raise UsageError(f"--haystack-tokens={longest} must be at least {SHORTEST}.")
    require_packages("--suite chat", "py3langid", extra="eval")
    text = read_haystack(haystack)
    ifeval = _load_ifeval()
    tasks = [task for task in fixed_tasks() if not (ifeval and task.name == INSTRUCTIONS)]
    return Suite(tuple(tasks), ifeval, text, longest, limit)


def score_suite(model: LoadedModel, suite: Suite) -> None:
    """Answer and score the prompts of ``suite`` that have no score in the model's folder yet."""
    prompts = model.prompts
    harnessed = HarnessModel(
        model.decoder, prompts.tokenizer, model.mesh, prompts.template, prompts.stop_ids
    )
    chat = harnessed if prompts.template else None
    if chat is None and is_primary():
        logger.warning(
            f"{model.folder.name} has no chat template; it continues the prompts as plain text."
        )
    settings = model.identity | {"prompts": prompts.fingerprint[:16]}
    if suite.ifeval:
        questions = make_questions(suite.ifeval, chat=chat, limit=suite.limit)
        answer_questions(questions, harnessed, model.folder, settings)

    def render(text: str) -> str:
        if chat is None:
            return f"{text}\n"
        return chat.apply_chat_template([{"role": "user", "content": text}])

    for task in (*suite.tasks, *_recall_tasks(model, suite)):
        score_task(task, harnessed, render, model.folder, settings, limit=suite.limit)


def score_task(
    task: SuiteTask,
    model: AnswerModel,
    render: Callable[[str], str],
    folder: Path,
    settings: Mapping[str, Any],
    *,
    limit: int | None = None,
) -> None:
    """Answer and score the prompts of ``task`` that have no score in ``folder`` yet.

    ``render`` returns the text of the whole prompt for a user's text.
    """
    prompts = first_prompts(task.prompts, limit)
    keys = [(prompt.group, prompt.id) for prompt in prompts]
    numbers = unscored(keys, folder, task.name, dict(settings) | {"questions": task.digest})
    if not numbers:
        return
    pending = [prompts[number] for number in numbers]
    # Without a temperature, answers are greedy.
    options = {"until": [], "max_gen_toks": task.answer_tokens}
    requests = [
        Instance("generate_until", {}, (render(prompt.text), options), 0) for prompt in pending
    ]
    with (
        Progress(f"{folder.name} {task.name}", float(len(pending)), "prompts") as progress,
        ScoreWriter(folder / f"{task.name}{LINES}") as scores,
    ):
        for number, answer in model.answers("generate_until", requests):
            if is_primary():
                cut = number in model.cut
                scores.add(score_answer(task, pending[number], str(answer), cut=cut))
            progress.update(1.0)


def score_answer(
    task: SuiteTask, prompt: SuitePrompt, answer: str, *, cut: bool = False
) -> ExampleScore:
    """Return the score of ``answer``. ``cut`` is True if the prompt was truncated."""
    metrics = prompt.check(answer)
    detail = prompt.detail | {"answers": [answer]} | ({"cut": True} if cut else {})
    others = {name: value for name, value in metrics.items() if name != task.metric}
    return ExampleScore(
        task.name,
        prompt.group,
        prompt.id,
        task.metric,
        float(metrics[task.metric]),
        less_is_better=task.less_is_better,
        detail=detail | ({"metrics": others} if others else {}),
    )


def _load_ifeval() -> Benchmark | None:
    """Load IFEval; return None, and log the reason, if any process cannot load it."""
    found, reason = None, ""
    try:
        found = load_benchmark(IFEVAL, "", None)
    except UserError as error:
        reason = str(error).partition(";")[0]
    # All processes must score the same tasks.
    reasons = [one for one in allgather_strings(reason, "IFEval") if one]
    if not reasons:
        return found
    if is_primary():
        logger.warning(
            f"IFEval is not available: {reasons[0]}. Instruction following is measured with "
            f"{INSTRUCTIONS}, the instructions of this package, whose score cannot be compared "
            "with scores of IFEval. IFEval needs `pip install 'lm-eval[ifeval]'` and access to "
            "the Hugging Face Hub."
        )
    return None


def _recall_tasks(model: LoadedModel, suite: Suite) -> list[SuiteTask]:
    """Return the task of long-context recall, or no task if the context is too short."""
    context = model.decoder.ends.config.context_length
    sizes = lengths(context, suite.longest)
    if not sizes:
        if is_primary():
            logger.warning(
                f"{model.folder.name}: long-context recall needs a context of {SHORTEST} tokens, "
                f"and the context is {context}; it is not measured."
            )
        return []
    tokenizer, template = model.prompts.tokenizer, model.prompts.template

    def count_prompt(text: str) -> int:
        if template:
            return len(template.prompt([Message("user", text)]))
        return len(tokenizer.text_prefix) + len(tokenizer.encode(f"{text}\n"))

    return [recall_task(suite.haystack, tokenizer.encode_batch, count_prompt, sizes)]
