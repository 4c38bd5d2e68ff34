"""Typed values out of plain ones: what sections of a config are held to, and the words if not."""

import dataclasses
import difflib
import json
import math
import types
import typing
from typing import Annotated, Any, Literal

from llama_cpt.runtime.errors import UserError


def option(default: Any = dataclasses.MISSING, *, former_name: str = "") -> Any:
    """Declare a dataclass field whose JSON may carry the name that it had in earlier versions."""
    metadata = {"former_name": former_name} if former_name else {}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def former_names(kind: Any) -> dict[str, str]:
    """Map the earlier names of the fields of dataclass ``kind`` to their names."""
    return {
        spec.metadata["former_name"]: spec.name
        for spec in dataclasses.fields(kind)
        if "former_name" in spec.metadata
    }


class ConfigSection:
    """What all sections of a config share: fields are of their types, or are made so."""

    def __post_init__(self) -> None:
        """Take fields as JSON's are taken, a list for a tuple; raise UserError where none fits."""
        hints = typing.get_type_hints(type(self), include_extras=True)
        for name, kind in hints.items():
            value = from_dict(kind, getattr(self, name), f"{type(self).__name__}.{name}")
            object.__setattr__(self, name, value)  # frozen


def require_at_least(least: int, section: Any, where: str, *names: str) -> None:
    """Raise UserError for a field of ``section``, called ``where``, that is below ``least``."""
    for name in names:
        if not least <= getattr(section, name) < math.inf:
            told = f"{where}.{name}".lstrip(".")
            raise UserError(f"{told}={getattr(section, name)} must be at least {least}, finite.")


def require_above_zero(name: str, value: float) -> None:
    """Raise UserError unless ``value`` is a finite number above 0."""
    if not 0 < value < math.inf:
        raise UserError(f"{name}={value} must be a finite number above 0.")


def require_share(section: Any, where: str, *names: str, below_one: bool = False) -> None:
    """Raise UserError for a field of ``section``, called ``where``, outside [0, 1], or [0, 1)."""
    for name in names:
        value = getattr(section, name)
        if not 0 <= value <= 1 or (below_one and value == 1):
            raise UserError(f"{where}.{name}={value} must be in [0, 1{')' if below_one else ']'}.")


def require_nonempty(where: str, **places: str) -> None:
    """Raise UserError for an empty name, which would be the current folder's."""
    for name, place in places.items():
        if not place:
            raise UserError(f"{f'{where}.{name}'.lstrip('.')} is empty: name a place.")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain JSON values; ``from_dict`` reads it back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: Any, values: Any, where: str = "config") -> Any:
    """Build dataclass ``kind`` from JSON ``values``; ``where`` names the place in errors."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return from_dict(typing.get_args(kind)[0], values, where)
    if dataclasses.is_dataclass(kind):
        if isinstance(values, kind):
            return values
        return _dataclass_from_dict(kind, values, where)
    if origin in (typing.Union, types.UnionType):
        return _union_from_value(kind, values, where)
    if origin is tuple:
        return _tuple_from_list(kind, values, where)
    if origin is Literal:
        if values not in typing.get_args(kind):
            options = ", ".join(map(repr, typing.get_args(kind)))
            raise UserError(f"{where}={values!r} must be one of {options}.")
        return values
    return _scalar(kind, values, where)


def did_you_mean(name: str, known: list[str]) -> str:
    """``; did you mean 'x'?``, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _scalar(kind: Any, value: Any, where: str) -> Any:
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{where}={value!r} must be {getattr(kind, '__name__', kind)}.")
    return float(value) if kind is float else value


def _union_from_value(kind: Any, values: Any, where: str) -> Any:
    def fields_named(option: Any) -> int:
        if not dataclasses.is_dataclass(option):
            return -1
        named = values if isinstance(values, dict) else {}
        return sum(spec.name in named for spec in dataclasses.fields(option))

    # Where none fits, the last tells why: the one that is meant.
    for option in sorted(typing.get_args(kind), key=fields_named):
        try:
            return from_dict(option, values, where)
        except UserError as error:
            last = error
    raise last


def _dataclass_from_dict(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{where}={values!r} must hold the fields of {kind.__name__}.")
    hints = typing.get_type_hints(kind, include_extras=True)
    renamed = former_names(kind)
    values = {renamed.get(name, name): value for name, value in values.items()}
    for name in values:
        if name not in hints:
            raise UserError(f"{where}: unknown field {name!r}{did_you_mean(name, list(hints))}")
    for spec in dataclasses.fields(kind):
        optional = spec.default is not dataclasses.MISSING
        optional = optional or spec.default_factory is not dataclasses.MISSING
        if spec.name not in values and not optional:
            raise UserError(f"{where}: field {spec.name!r} is missing.")
    return kind(**{n: from_dict(hints[n], v, f"{where}.{n}") for n, v in values.items()})


def _tuple_from_list(kind: Any, values: Any, where: str) -> tuple:
    kinds = typing.get_args(kind)
    if not isinstance(values, list | tuple):
        raise UserError(f"{where}={values!r} must be a list.")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(values)
    if len(kinds) != len(values):
        raise UserError(f"{where}={values!r} must have {len(kinds)} entries.")
    return tuple(
        from_dict(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, values, strict=True))
    )
