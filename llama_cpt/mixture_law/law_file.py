"""``law.json``: a law written so that people and programs read it, and it predicts again."""

from collections.abc import Mapping
import dataclasses
import json
import math
import types
import typing
from typing import Any

from etils import epath
import numpy as np

from llama_cpt.mixture_law.forms import Form, forms_of
from llama_cpt.mixture_law.intervals import Interval
from llama_cpt.mixture_law.law import Law
from llama_cpt.mixture_law.runs_table import Results
from llama_cpt.runtime.errors import UserError

FORMAT = 1
FIRST = ("recommendation", "refusal", "objective", "chosen", "table")
WIDTH = 100
FORMER_NAMES = {
    "goal": "objective",
    "points": "runs",
    "carry": "extrapolation",
    "ridge": "optimal_rate",
    "home_parameters": "reference_parameters",
    "home_tokens": "reference_tokens",
}


def to_json(law: Law, results: Results) -> str:
    """The text of ``law.json``: what is recommended first, what it takes to predict last.

    A band is two entries: ``almr`` and ``almr_interval``, of 90 %.
    """
    values = _plain(law) | {"format": FORMAT, "chosen": _chosen(law), "table": _table(results)}
    order = ("format", *FIRST, *(name for name in values if name not in (*FIRST, "format")))
    return _laid_out({name: values[name] for name in order}) + "\n"


def load_law(path: str) -> Law:
    """The law of a ``law.json``, which predicts what it did when it was written."""
    try:
        values = json.loads(epath.Path(path).read_text())
        if values["format"] != FORMAT:
            raise UserError(f"{path}: format {values['format']}, this version reads {FORMAT}.")
        return _typed(Law, _with_later_fields(_with_present_names(values)))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; fit_law writes it into its --output.") from None
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a law of this version ({error!r}).") from None


def _with_present_names(values: dict[str, Any]) -> dict[str, Any]:
    """Rename the fields that earlier versions wrote under other names."""
    values = _renamed(values, FORMER_NAMES)
    if surface := values["surface"]:
        values["surface"] = surface = _renamed(surface, {"frame": "normalization"})
        surface["normalization"] = _renamed(surface["normalization"], FORMER_NAMES)
    return values


def _renamed(values: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}


def _with_later_fields(values: dict[str, Any]) -> dict[str, Any]:
    """A law that was written before some fields were there; it predicts as it did then."""
    runs, surface = values["runs"], values["surface"]
    runs.setdefault("batch_tokens", [None] * len(runs["run"]))
    if surface:
        tokens = [count for count in runs["tokens"] if count is not None]
        surface.setdefault("longest", max(tokens, default=1.0))
        for group in surface["groups"].values():
            group.setdefault("size_error", 0.0)
    return values


def _chosen(law: Law) -> dict[str, Any]:
    """Of each group, the form that was chosen."""
    return {fit.group: {**_plain(fit)} for fit in law.forms if fit.chosen}


def _table(results: Results) -> dict[str, Any]:
    points = results.runs
    grid = {
        name: np.unique(getattr(points, name))
        for name in ("pair", "parameters", "tokens", "almr", "learning_rate", "schedule", "seed")
    }
    facts = {"files": results.files, "runs": len(points), "corpora": results.corpora}
    return _plain(facts | {"grid": grid, "left_out": results.left_out, "remarks": results.remarks})


def _plain(value: Any) -> Any:
    """Values of JSON: what is no finite number is null, a form its name."""
    if isinstance(value, Form):
        return {"name": value.name, "group": value.group}
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return _plain(fields)
    if isinstance(value, Mapping):
        found = {}
        for name, entry in value.items():
            if isinstance(entry, Interval):
                found[name] = _plain(entry.value)
                found[f"{name}_interval"] = [_plain(entry.low), _plain(entry.high)]
            else:
                found[name] = _plain(entry)
        return found
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _typed(kind: Any, value: Any) -> Any:
    """What ``_plain`` made of a value of ``kind``, as it was."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _of_union(arguments, value)
    if isinstance(kind, type) and issubclass(kind, Form):
        return next(form for form in forms_of(value["group"]) if form.name == value["name"])
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = [field.name for field in dataclasses.fields(kind)]
        return kind(**{name: _entry(hints[name], value, name) for name in names})
    if origin is tuple:
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_typed(one, entry) for one, entry in zip(kinds, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        names = [name for name in value if not name.endswith("_interval")]
        return {name: _entry(arguments[1], value, name) for name in names}
    if kind is np.ndarray:
        return _array(value)
    return math.nan if kind is float and value is None else value


def _entry(kind: Any, values: Mapping[str, Any], name: str) -> Any:
    """An entry of an object; a band is two."""
    if kind not in (Interval, Interval | None):
        return _typed(kind, values[name])
    if f"{name}_interval" not in values:
        return None
    ends = [values[name], *values[f"{name}_interval"]]
    return Interval(*(_array(end) if isinstance(end, list) else _typed(float, end) for end in ends))


def _of_union(kinds: tuple[Any, ...], value: Any) -> Any:
    """The dataclass that has the value's names, None, an array for a list; else as it is."""
    if value is None:
        return None if types.NoneType in kinds else math.nan
    for kind in kinds:
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            if {f.name for f in dataclasses.fields(kind)} <= set(value):
                return _typed(kind, value)
    others = [kind for kind in kinds if kind is not types.NoneType]
    if isinstance(value, list):
        return _array(value) if np.ndarray in others else _typed(others[0], value)
    return _typed(others[0], value) if len(others) == 1 else value


def _array(value: list[Any]) -> np.ndarray:
    found = np.array(value)
    return np.array(value, float) if found.dtype == object else found


def _laid_out(value: Any, indent: int = 0) -> str:
    """JSON with one entry a line where it is long, numbers side by side."""
    short = json.dumps(value, ensure_ascii=False, allow_nan=False)
    rows = value.items() if isinstance(value, dict) else value
    nested = isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(entry, dict) for entry in value)
    )
    if not nested or len(short) + indent <= WIDTH:
        return short
    inner = " " * (indent + 1)
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(n)}: {_laid_out(v, indent + 1)}" for n, v in rows]
        return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"
    lines = [inner + _laid_out(entry, indent + 1) for entry in rows]
    return "[\n" + ",\n".join(lines) + "\n" + " " * indent + "]"
