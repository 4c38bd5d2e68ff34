"""Conversion of a law to and from ``law.json``, a readable file that preserves predictions."""

from collections.abc import Mapping
import dataclasses
import json
import math
import types
import typing
from typing import Any

import numpy as np

from llama_cpt.mixture_law.forms import Form, forms_of
from llama_cpt.mixture_law.intervals import Interval
from llama_cpt.mixture_law.law import Law
from llama_cpt.mixture_law.runs_table import Results
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_json_object

FORMAT = 1
"""Version of the file format."""
FIRST_KEYS = ("recommendation", "refusal", "objective", "chosen", "table")
"""Keys at the top of the file, after ``format``, for human readers."""
WIDTH = 100
"""Maximum line width in characters; values that do not fit are written with one entry per line."""
# A law is saved before the runs that test its predictions, so later versions must read old files.
FORMER_NAMES = {
    "goal": "objective",
    "points": "runs",
    "carry": "extrapolation",
    "ridge": "optimal_rate",
    "home_parameters": "reference_parameters",
    "home_tokens": "reference_tokens",
}
"""Map from field names that earlier versions wrote to current field names."""


def to_json(law: Law, results: Results) -> str:
    """Return the text of ``law.json`` for a law and the table to which it was fitted.

    The recommendation comes first. The loss surfaces, which predictions need, come last. An
    ``Interval`` is written as two entries, such as ``almr`` and ``almr_interval``.
    """
    chosen = {fit.group: {**_to_plain(fit)} for fit in law.forms if fit.chosen}
    values = _to_plain(law) | {"format": FORMAT, "chosen": chosen, "table": _table(results)}
    order = (
        "format",
        *FIRST_KEYS,
        *(name for name in values if name not in (*FIRST_KEYS, "format")),
    )
    return _format_json({name: values[name] for name in order}) + "\n"


def load_law(path: str) -> Law:
    """Return the law in a ``law.json`` file.

    The returned law gives the same predictions as the saved law. Raises UserError if the file does
    not exist or if this version cannot read it.
    """
    values = read_json_object(path, "run fit_law, which writes law.json to its --output folder")
    if values.get("format") != FORMAT:
        raise UserError(
            f"{path}: the file has format {repr(values.get('format'))[:80]}, but this version "
            f"reads format {FORMAT}; run fit_law again."
        )
    try:
        return _from_plain(Law, _with_added_fields(_with_current_names(values)))
    # Values of a wrong type or length cause these errors in the conversion.
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        StopIteration,
    ) as error:
        raise UserError(
            f"{path}: this version cannot read the file as a law ({repr(error)[:200]}); run "
            "fit_law again."
        ) from None


def _with_current_names(values: dict[str, Any]) -> dict[str, Any]:
    """Return the file's content with fields of earlier versions under their current names."""
    values = _renamed(values, FORMER_NAMES)
    if surface := values["surface"]:
        values["surface"] = surface = _renamed(surface, {"frame": "normalization"})
        surface["normalization"] = _renamed(surface["normalization"], FORMER_NAMES)
    return values


def _renamed(values: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return ``values`` with each key that is in ``names`` replaced by its new name."""
    return {names.get(name, name): value for name, value in values.items()}


def _with_added_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Return the file's content with defaults for fields that earlier versions did not write.

    The defaults do not change the predictions.
    """
    runs, surface = values["runs"], values["surface"]
    runs.setdefault("batch_tokens", [None] * len(runs["run"]))
    if surface:
        tokens = [count for count in runs["tokens"] if count is not None]
        surface.setdefault("longest", max(tokens, default=1.0))
        for group in surface["groups"].values():
            # Intervals of earlier versions did not include the size error.
            group.setdefault("size_error", 0.0)
    return values


def _table(results: Results) -> dict[str, Any]:
    """Return the files, the settings and the corpora of the table as JSON types."""
    runs = results.runs
    grid = {
        name: np.unique(getattr(runs, name))
        for name in ("pair", "parameters", "tokens", "almr", "learning_rate", "schedule", "seed")
    }
    facts = {"files": results.files, "runs": len(runs), "corpora": results.corpora}
    return _to_plain(
        facts | {"grid": grid, "left_out": results.left_out, "remarks": results.remarks}
    )


def _to_plain(value: Any) -> Any:
    """Return a value as JSON types.

    Numbers that are not finite become null. A ``Form`` becomes its name and its group.
    """
    if isinstance(value, Form):
        return {"name": value.name, "group": value.group}
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return _to_plain(fields)
    if isinstance(value, Mapping):
        found = {}
        for name, entry in value.items():
            if isinstance(entry, Interval):
                found[name] = _to_plain(entry.value)
                found[f"{name}_interval"] = [_to_plain(entry.low), _to_plain(entry.high)]
            else:
                found[name] = _to_plain(entry)
        return found
    if isinstance(value, np.ndarray | np.generic):
        return _to_plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_to_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _from_plain(kind: Any, value: Any) -> Any:
    """Return the value of type ``kind`` that ``_to_plain`` converted to ``value``."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _of_union(arguments, value)
    if isinstance(kind, type) and issubclass(kind, Form):
        # The group is the only state of a form, so the name and the group determine it.
        return next(form for form in forms_of(value["group"]) if form.name == value["name"])
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = [field.name for field in dataclasses.fields(kind)]
        return kind(**{name: _entry(hints[name], value, name) for name in names})
    if origin is tuple:
        _check_type(list, value)
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_from_plain(one, entry) for one, entry in zip(kinds, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _check_type(dict, value)
        # An entry NAME_interval is the interval of the entry NAME.
        names = [name for name in value if not name.endswith("_interval")]
        return {name: _entry(arguments[1], value, name) for name in names}
    if kind is np.ndarray:
        return _array(value)
    # JSON has no NaN. A null in place of a number was NaN or infinite.
    if kind is float and value is None:
        return math.nan
    _check_type(kind, value)
    return value


def _check_type(kind: Any, value: Any) -> None:
    """Raise TypeError unless ``value`` has the JSON type ``kind``."""
    accepted = (int, float) if kind is float else kind
    if kind not in (bool, int, float, str, list, dict) or (
        isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    ):
        return
    raise TypeError(f"{repr(value)[:80]} must be {kind.__name__}")


def _entry(kind: Any, values: Mapping[str, Any], name: str) -> Any:
    """Return the entry ``name`` as ``kind``; an ``Interval`` is read from two entries."""
    if kind not in (Interval, Interval | None):
        return _from_plain(kind, values[name])
    if f"{name}_interval" not in values:
        return None
    ends = [values[name], *values[f"{name}_interval"]]
    return Interval(
        *(_array(end) if isinstance(end, list) else _from_plain(float, end) for end in ends)
    )


def _of_union(kinds: tuple[Any, ...], value: Any) -> Any:
    """Return the value as one of the types ``kinds`` of a union.

    A JSON object becomes an instance of the first dataclass in ``kinds`` for which it contains all
    fields. Null becomes None if the union includes None, otherwise NaN. A list becomes an array if
    the union includes arrays.
    """
    if value is None:
        return None if types.NoneType in kinds else math.nan
    for kind in kinds:
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            if {f.name for f in dataclasses.fields(kind)} <= set(value):
                return _from_plain(kind, value)
    others = [kind for kind in kinds if kind is not types.NoneType]
    if isinstance(value, list):
        return _array(value) if np.ndarray in others else _from_plain(others[0], value)
    return _from_plain(others[0], value) if len(others) == 1 else value


def _array(value: list[Any]) -> np.ndarray:
    """Return a JSON list as an array, with NaN in place of null."""
    # NumPy reads None as an object, so an array with a null has dtype object.
    array = np.array(value)
    if array.dtype.kind == "U" and not all(isinstance(entry, str) for entry in value):
        raise TypeError("a list must contain only numbers or only strings")
    return np.array(value, float) if array.dtype == object else array


def _format_json(value: Any, indent: int = 0) -> str:
    """Return JSON text in which an object or list with objects has one entry per line.

    Values that fit into ``WIDTH``, and lists of numbers, are on one line.
    """
    short = json.dumps(value, ensure_ascii=False, allow_nan=False)
    rows = value.items() if isinstance(value, dict) else value
    # A list without objects, such as an array of numbers, stays on one line, however long it is.
    nested = isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(entry, dict) for entry in value)
    )
    if not nested or len(short) + indent <= WIDTH:
        return short
    inner = " " * (indent + 1)
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(n)}: {_format_json(v, indent + 1)}" for n, v in rows]
        return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"
    lines = [inner + _format_json(entry, indent + 1) for entry in rows]
    return "[\n" + ",\n".join(lines) + "\n" + " " * indent + "]"
