"""Benchmarks by name: task files of ours over a folder of data, or the harness's own tasks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
import importlib
import logging
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager
import yaml

from llama_cpt.config.fields import did_you_mean
from llama_cpt.evaluation.tasks.local_files import subjects
from llama_cpt.runtime.errors import UserError

FOLDER, YAML = Path(__file__).with_name("tasks"), ".yaml"


@dataclass(frozen=True)
class Benchmark:
    """Tasks of the harness that are one benchmark together."""

    name: str
    parts: dict[str, Task]
    """By subject; by "" where there are no subjects."""


# A file of each subject: the split that is asked, and how its files end.
_SUBJECTS = {"cmmlu": ("test", ".csv"), "ceval": ("val", "_val.csv"), "mmlu": ("test", "_test.csv")}
LOCAL = tuple(sorted(file.stem for file in FOLDER.glob(f"*{YAML}")))
"""What a folder of data can hold."""
WORLD = tuple(name for name in LOCAL if name.startswith("world_"))
"""Of the demo's world, which no hub has."""
HUB = {"ceval": "ceval-valid", "mgsm_zh": "mgsm_direct_zh"}
"""Names of the harness where they are not ours."""


def load_benchmark(name: str, data: str, shots: int | None) -> Benchmark:
    """``name`` over the folder ``data``; by the harness's own where ``data`` is empty.

    ``shots``: worked examples before each question, None as the task says. A ``name`` that ends in
    ``.yaml`` is a task file. Raises UserError for what is not known or not there.
    """
    # The harness tells of every task that it builds.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if name.endswith(YAML):
        alone = TaskManager(include_defaults=False)
        benchmark = _from_harness(alone, Path(name).stem, name)
    elif data and name in LOCAL:
        benchmark = _local(name, data)
    elif runs_code(name) or name in WORLD:
        raise UserError(f"{name} needs --data: a folder with its questions.")
    else:
        benchmark = _from_harness(_manager(), name, HUB.get(name, name))
    for task in benchmark.parts.values():
        if task.config.repeats > 1:
            raise UserError(
                f"task {name} asks each question {task.config.repeats} times: that is not done "
                "here; ask it with lm_eval, which takes the exported model."
            )
        given = task.config.num_fewshot or 0
        # What a task says is without worked examples (0) stays so, as in the harness.
        asked = given if shots is None or task.config.num_fewshot == 0 else shots
        task.set_config("num_fewshot", asked)
    return benchmark


def check_name(name: str) -> None:
    """Raise UserError for a benchmark that nobody knows, with names near to it."""
    if name in LOCAL or Path(name).is_file():
        return
    if name.endswith(YAML):
        raise UserError(f"{name}: no such task file.")
    known = [*LOCAL, *_manager().all_tasks]
    if name not in known:
        raise UserError(
            f"unknown task {name!r}{did_you_mean(name, known)} (ours: {', '.join(LOCAL)})."
        )


def runs_code(name: str) -> bool:
    """Whether a benchmark runs what the model writes."""
    return name == "humaneval"


def _local(name: str, data: str) -> Benchmark:
    config = _read(FOLDER / f"{name}{YAML}")
    split, ending = _SUBJECTS.get(name, ("", ""))
    parts = subjects(data, name, split, ending) if ending else [""]
    return Benchmark(name, {part: _task(config, name, data, part) for part in parts})


def _task(config: dict[str, Any], name: str, data: str, part: str) -> ConfigurableTask:
    return ConfigurableTask(
        config=config
        | {
            "task": f"{name}_{part}" if part else name,
            "dataset_kwargs": {"folder": data, "part": part},
        }
    )


def _from_harness(manager: TaskManager, name: str, theirs: str) -> Benchmark:
    """``theirs``: a name of the harness's, or a task file."""
    try:
        tasks = manager.load([theirs])["tasks"]
    # Whatever the hub's client, the network, a task's code or its data's loader raises.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"task {name} could not be loaded ({reason[0]}); without the hub, give --data a folder "
            "with a copy of a benchmark of ours."
        ) from None
    for task in tasks.values():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(f"task {name} runs generated code without limits: take our humaneval.")
    names = {one: one.removeprefix(f"{theirs}_") for one in tasks}
    return Benchmark(
        name, {"" if len(tasks) == 1 else names[one]: task for one, task in tasks.items()}
    )


@cache
def _manager() -> TaskManager:
    return TaskManager()


def _read(file: Path) -> dict[str, Any]:
    """A task file of the harness's format; ``!function MODULE.NAME`` is in a module beside it."""

    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Callable:
        module, _, attribute = loader.construct_scalar(node).rpartition(".")
        package = "llama_cpt.evaluation.tasks"
        return getattr(importlib.import_module(f"{package}.{module}"), attribute)

    Loader.add_constructor("!function", function)
    with open(file, "rb") as content:
        task = yaml.load(content, Loader)
    included = task.pop("include", "")
    return (_read(file.with_name(included)) if included else {}) | task
