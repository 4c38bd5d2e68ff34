"""Task files of lm-evaluation-harness: a check for code, and templates that run in a sandbox."""

from collections.abc import Iterator
from functools import lru_cache
import importlib
from pathlib import Path
from typing import Any

from lm_eval.api.registry import metric_registry
from lm_eval.utils import env
import yaml

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.jinja_runner import TemplateError, render

_PLAIN_TAG = "tag:yaml.org,2002:"
_PYTHON_TAG = f"{_PLAIN_TAG}python"
_CODE_KEYS = ("class", "process_docs", "custom_dataset")
"""Fields of a task whose values are Python functions or classes."""
_CODE_FLAGS = ("trust_remote_code", "hf_evaluate")
"""Fields that allow code of a data set or of a metric on the Hugging Face Hub."""
_CACHED_TEXTS = 1024
# This module registers the metrics when it is imported.
importlib.import_module("lm_eval.api.metrics")


class _TaskTemplate:
    """A template of a task, with the method of ``jinja2.Template`` that the harness calls."""

    def __init__(self, source: str) -> None:
        self._source = source
        # Worked examples are rendered again for every question.
        self._cached: dict[str, str] = {}

    def render(self, /, **document: Any) -> str:
        """Return the text for ``document``; raise UserError if the template cannot be rendered."""
        key = repr(document)
        if key not in self._cached:
            try:
                (text,) = render("task", self._source, [document])
            except TemplateError as error:
                excerpt = self._source if len(self._source) < 80 else f"{self._source[:77]}..."
                raise UserError(f"template {excerpt!r}: {error}.") from None
            if len(self._cached) >= _CACHED_TEXTS:
                self._cached.pop(next(iter(self._cached)))
            self._cached[key] = text
        return self._cached[key]


# The harness renders all templates of tasks with this environment, which is not a sandbox.
vars(env)["from_string"] = lru_cache(_TaskTemplate)


def check_task_file(file: str) -> None:
    """Raise UserError if the task file ``file``, or a file that it includes, contains code.

    The harness would import Python files and data sets or metrics with code while it loads the
    task. The check parses the files without running anything.
    """
    waiting, seen = [Path(file)], set()
    while waiting:
        path = waiting.pop().expanduser().resolve()
        if path in seen:
            continue
        seen.add(path)
        for parent, key, node in _nodes(_parse(path)):
            if found := _code(parent, key, node):
                raise UserError(
                    f"{path}:{node.start_mark.line + 1}: {found} runs Python code of the task; if "
                    "you trust the task, run evaluate with --allow-task-code."
                )
            if key == "include" and isinstance(node, yaml.ScalarNode):
                # The harness resolves relative names in the same way.
                waiting.append(path.parent / node.value)


def _code(parent: str, key: str, node: yaml.Node) -> str:
    """Return the part of ``node``, the value of ``key``, that runs code, or an empty string."""
    if not node.tag.startswith(_PLAIN_TAG) or node.tag.startswith(_PYTHON_TAG):
        return node.tag.removeprefix(_PLAIN_TAG)
    if node.tag == f"{_PLAIN_TAG}null":
        return ""
    if key in _CODE_KEYS:
        return f"{key}:"
    if key in _CODE_FLAGS and str(node.value).lower() in ("true", "yes", "on"):
        return f"{key}: {node.value}"
    # The harness looks for other metrics in the library evaluate, which runs their code.
    if (
        key == "metric"
        and parent != "aggregate_metric_list"
        and str(node.value) not in metric_registry
    ):
        return f"metric: {node.value}"
    # A file of prompts can contain the same code as a task file.
    return f"use_prompt: {node.value}" if key == "use_prompt" else ""


def _parse(file: Path) -> yaml.Node | None:
    """Return the root node of a YAML file, without constructing its values."""
    try:
        return yaml.compose(file.read_text("utf-8-sig"), yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check --tasks.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: not a task file in YAML ({reason}); fix it.") from None


def _nodes(root: yaml.Node | None) -> Iterator[tuple[str, str, yaml.Node]]:
    """Yield the key of the enclosing mapping, the key of a node, and the node, for each node.

    The key of a node in a list is the key of the list. A node with several aliases is yielded once
    per pair of keys.
    """
    waiting = [("", "", root)] if root else []
    seen: set[tuple[str, str, int]] = set()
    while waiting:
        parent, key, node = waiting.pop()
        if (parent, key, id(node)) in seen:
            continue
        seen.add((parent, key, id(node)))
        yield parent, key, node
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                # A merge key (<<) adds the fields of its value to this mapping.
                merged = name.value == "<<"
                waiting += [
                    ("", "", name),
                    (parent, key, value) if merged else (key, str(name.value), value),
                ]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(parent, key, one) for one in node.value]
