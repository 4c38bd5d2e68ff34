"""Loading of benchmarks by name, from this package's task files or lm-evaluation-harness."""

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
from llama_cpt.evaluation.task_files import check_task_file
from llama_cpt.evaluation.tasks.local_files import blimp_paradigms, subjects
from llama_cpt.runtime.errors import UserError, first_line

FOLDER, YAML = Path(__file__).with_name("tasks"), ".yaml"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark and the lm-evaluation-harness tasks that compute its scores."""

    name: str
    parts: dict[str, Task]
    """Tasks by subject. A benchmark without subjects has a single task with the key ``""``."""


# Benchmarks with one file per subject: the evaluated split and the suffix of its file names.
_SUBJECTS = {"cmmlu": ("test", ".csv"), "ceval": ("val", "_val.csv"), "mmlu": ("test", "_test.csv")}
LOCAL = tuple(sorted(file.stem for file in FOLDER.glob(f"*{YAML}")))
"""Names of the benchmarks that can be read from the folder that ``--data`` names."""
WORLD = tuple(name for name in LOCAL if name.startswith("world_"))
"""Names of the benchmarks about the demo's synthetic world, which need the option ``--data``."""
HUB = {"ceval": "ceval-valid", "mgsm_zh": "mgsm_direct_zh"}
"""Task names in lm-evaluation-harness, keyed by benchmark, for tasks with a different name."""


def load_benchmark(
    name: str, data: str, shots: int | None, *, allow_code: bool = False
) -> Benchmark:
    """Load the benchmark ``name``.

    The path of a task file is also a name. The task file defines the benchmark and the location of
    its data, and may contain Python code only if ``allow_code`` is True. A benchmark in ``LOCAL``
    is read from the folder ``data``, unless ``data`` is empty. In all other cases,
    lm-evaluation-harness loads the data from the Hugging Face Hub. ``shots`` is the number of
    worked examples before each question; None keeps the task's default.
    Raises UserError if the name is unknown, if the data is missing, if the task file contains code
    that is not allowed, or if the task sets ``repeats`` above 1.
    """
    # The harness logs a line for every task that it builds.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if _is_task_file(name):
        if not allow_code:
            check_task_file(name)
        manager = TaskManager(include_defaults=False)
        benchmark = _from_harness(manager, Path(name).stem, name)
    elif data and name in LOCAL:
        benchmark = _local(name, data)
    elif runs_code(name) or name in WORLD:
        raise UserError(f"{name} needs --data: set it to a folder with its questions.")
    else:
        benchmark = _from_harness(_manager(), name, HUB.get(name, name))
    for task in benchmark.parts.values():
        if task.config.repeats > 1:
            raise UserError(
                f"task {name} sets repeats={task.config.repeats}, which is not supported; run the "
                "task with lm_eval on the exported model."
            )
        default = task.config.num_fewshot or 0
        # As in the harness, ``shots`` does not apply to a task that sets num_fewshot to 0.
        num_fewshot = default if shots is None or task.config.num_fewshot == 0 else shots
        task.set_config("num_fewshot", num_fewshot)
    return benchmark


def check_name(name: str, *, allow_code: bool = False) -> None:
    """Raise UserError if ``name`` is neither a known benchmark nor an existing task file.

    Raises UserError also if ``name`` is a task file with Python code, unless ``allow_code`` is
    True.
    """
    if name in LOCAL:
        return
    if Path(name).is_file():
        if not allow_code:
            check_task_file(name)
        return
    if name.endswith(YAML):
        raise UserError(f"{name}: task file does not exist; check --tasks.")
    known = [*LOCAL, *_manager().all_tasks]
    if name not in known:
        raise UserError(
            f"unknown task {name!r}{did_you_mean(name, known)} (built in: {', '.join(LOCAL)})."
        )


def runs_code(name: str) -> bool:
    """Return whether the benchmark ``name`` executes code that the model generates."""
    return name == "humaneval"


def _is_task_file(name: str) -> bool:
    """Return whether ``name`` is the path of a task file."""
    return name.endswith(YAML) or (name not in LOCAL and Path(name).is_file())


def _local(name: str, data: str) -> Benchmark:
    config = _read(FOLDER / f"{name}{YAML}")
    split, ending = _SUBJECTS.get(name, ("", ""))
    parts = subjects(data, name, split, ending) if ending else [""]
    if name == "blimp":
        parts = blimp_paradigms(data)
    return Benchmark(name, {part: _task(config, name, data, part) for part in parts})


def _task(config: dict[str, Any], name: str, data: str, part: str) -> ConfigurableTask:
    return ConfigurableTask(
        config=config
        | {
            "task": f"{name}_{part}" if part else name,
            "dataset_kwargs": {"folder": data, "part": part},
        }
    )


def _from_harness(manager: TaskManager, name: str, harness_name: str) -> Benchmark:
    """Load a benchmark by its task name in lm-evaluation-harness, or from a task file."""
    try:
        tasks = manager.load([harness_name])["tasks"]
    except UserError as error:
        raise UserError(f"task {harness_name}: {error}") from None
    # The hub client, the network, the task's code and its data loader can raise any exception.
    except Exception as error:
        reason = first_line(error)
        raise UserError(
            f"task {name} could not be loaded ({reason}); if the Hugging Face Hub cannot be "
            "reached, set --data to a folder with a copy of a built-in benchmark."
        ) from None
    for task in tasks.values():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(
                f"task {name} runs generated code outside a sandbox; use the task humaneval."
            )
    names = {one: one.removeprefix(f"{harness_name}_") for one in tasks}
    return Benchmark(
        name, {"" if len(tasks) == 1 else names[one]: task for one, task in tasks.items()}
    )


@cache
def _manager() -> TaskManager:
    return TaskManager()


def _read(file: Path) -> dict[str, Any]:
    """Read a task file in the format of lm-evaluation-harness.

    ``!function MODULE.NAME`` refers to a function in ``llama_cpt.evaluation.tasks``.
    """

    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Callable[..., Any]:
        module, _, attribute = loader.construct_scalar(node).rpartition(".")
        package = "llama_cpt.evaluation.tasks"
        return getattr(importlib.import_module(f"{package}.{module}"), attribute)

    Loader.add_constructor("!function", function)
    with open(file, "rb") as content:
        task = yaml.load(content, Loader)
    included = task.pop("include", "")
    return (_read(file.with_name(included)) if included else {}) | task
