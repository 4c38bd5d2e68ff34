"""Fields of config sections: their declaration, their conversion from JSON and their validation."""

from collections.abc import Callable, Hashable, Iterator
import dataclasses
import difflib
import json
import math
import types
import typing
from typing import Annotated, Any, Literal

from llama_cpt.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class FieldTraits:
    """Properties of a config field for the rest of the package, declared once by ``option``.

    The defaults are the safe ones: a field that declares nothing separates compiled steps, and a
    resumed run cannot change it unnoticed.
    """

    former_name: str = ""
    """The field's name in JSON files of earlier versions, if it had another one."""
    compiled: bool | Callable[[Any], Hashable] = True
    """True if the compiled step depends on the value; or a function of the field's section that
    returns what the step depends on."""
    on_resume: Literal["fixed", "warn", "never", "ignore"] = "fixed"
    """A change on resume: ``fixed`` needs ``--allow-change``, ``warn`` prints a warning, ``never``
    is an error, and ``ignore`` is not mentioned because fingerprints cover the content."""
    is_path: bool = False
    """True for a path, in which ``~`` is expanded."""


def option(default: Any = dataclasses.MISSING, **traits: Any) -> Any:
    """Declare a dataclass field with the given ``FieldTraits``; a callable default is a factory."""
    metadata = {"traits": FieldTraits(**traits)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def field_traits(spec: dataclasses.Field) -> FieldTraits:
    """Return the traits of a dataclass field, the defaults if it declares none."""
    return spec.metadata.get("traits", FieldTraits())


def former_names(kind: Any) -> dict[str, str]:
    """Map the earlier names of the fields of dataclass ``kind`` to their present names."""
    return {
        former: spec.name
        for spec in dataclasses.fields(kind)
        if (former := field_traits(spec).former_name)
    }


def traits_by_name(kind: type, above: str = "") -> dict[str, FieldTraits]:
    """Map the dotted name of each field in ``kind`` and its sections to the field's traits.

    Entries of a tuple have the name of the tuple: ``data.original.weight``.
    """
    found = {}
    hints = typing.get_type_hints(kind)
    for spec in dataclasses.fields(kind):
        found[above + spec.name] = field_traits(spec)
        for section in _sections_in(hints[spec.name]):
            found |= traits_by_name(section, f"{above}{spec.name}.")
    return found


def _sections_in(kind: Any) -> Iterator[type]:
    """Yield the dataclasses in a type such as ``LoraConfig | None``."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        yield kind
    for argument in typing.get_args(kind):
        yield from _sections_in(argument)


def compiled_values(section: Any) -> tuple[Hashable, ...]:
    """Return the values in ``section`` that the compiled step depends on, by field name.

    The class name comes first: two objectives with equal values are different programs.
    """
    values: list[Hashable] = [type(section).__name__]
    for spec in dataclasses.fields(section):
        compiled = field_traits(spec).compiled
        if callable(compiled):
            values.append((spec.name, compiled(section)))
        elif compiled:
            values.append((spec.name, _compiled_value(getattr(section, spec.name))))
    return tuple(values)


def _compiled_value(value: Any) -> Hashable:
    if dataclasses.is_dataclass(value):
        return compiled_values(value)
    return tuple(map(_compiled_value, value)) if isinstance(value, tuple) else value


def map_paths(section: Any, transform: Callable[[str], str]) -> Any:
    """Return ``section`` with ``transform`` applied to every path field at any depth."""

    def mapped(value: Any, is_path: bool) -> Any:
        # Sections are visited whatever the field declares: their own fields are the paths.
        if dataclasses.is_dataclass(value):
            return map_paths(value, transform)
        if isinstance(value, tuple):
            return tuple(mapped(entry, is_path) for entry in value)
        return transform(value) if is_path and isinstance(value, str) else value

    old = {spec.name: getattr(section, spec.name) for spec in dataclasses.fields(section)}
    new = {
        spec.name: mapped(old[spec.name], field_traits(spec).is_path)
        for spec in dataclasses.fields(section)
    }
    return section if new == old else dataclasses.replace(section, **new)


def renamed_path(section: Any, path: list[str]) -> str:
    """Return ``path`` with the present name of its last field if that was renamed, else ''."""
    *parents, last = path
    for name in parents:
        section = getattr(section, name, None)
    renamed = former_names(section).get(last) if dataclasses.is_dataclass(section) else None
    return ".".join([*parents, renamed]) if renamed else ""


class ConfigSection:
    """Base class of every config section; it converts and checks fields by their annotations."""

    def __post_init__(self) -> None:
        """Convert fields as values from JSON, a list to a tuple; raise UserError for a bad type."""
        hints = typing.get_type_hints(type(self), include_extras=True)
        for name, kind in hints.items():
            value = from_dict(kind, getattr(self, name), f"{type(self).__name__}.{name}")
            object.__setattr__(self, name, value)  # The dataclass is frozen.


def require_at_least(least: int, section: Any, where: str, *names: str) -> None:
    """Raise UserError if a field of ``section``, named ``where`` in errors, is below ``least``."""
    for name in names:
        value = getattr(section, name)
        if not least <= value < math.inf:
            full_name = f"{where}.{name}".lstrip(".")
            raise UserError(f"{full_name}={value} must be a finite number, at least {least}.")


def require_above_zero(name: str, value: float) -> None:
    """Raise UserError unless ``value`` is a finite number above 0."""
    if not 0 < value < math.inf:
        raise UserError(f"{name}={value} must be a finite number above 0.")


def require_share(section: Any, where: str, *names: str, below_one: bool = False) -> None:
    """Raise UserError if a field of ``section`` is outside [0, 1], or [0, 1) if ``below_one``."""
    for name in names:
        value = getattr(section, name)
        if not 0 <= value <= 1 or (below_one and value == 1):
            raise UserError(f"{where}.{name}={value} must be in [0, 1{')' if below_one else ']'}.")


def require_nonempty(where: str, **paths: str) -> None:
    """Raise UserError for an empty path, which would mean the current folder."""
    for name, path in paths.items():
        if not path:
            raise UserError(f"{f'{where}.{name}'.lstrip('.')} is empty; set it.")


def to_dict(config: Any) -> dict[str, Any]:
    """Return the config as plain JSON values, which ``from_dict`` reads."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: Any, values: Any, where: str = "config") -> Any:
    """Build dataclass ``kind`` from JSON ``values``; ``where`` names the location in errors."""
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
    """Return ``; did you mean 'x'?`` for the closest known name, or '' if none is close."""
    closest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {closest[0]!r}?" if closest else ""


def _scalar(kind: Any, value: Any, where: str) -> Any:
    # A JSON number without a fraction is an int; and bool is a subclass of int in Python, but True
    # is not a number of steps.
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{where}={value!r} must be {getattr(kind, '__name__', kind)}.")
    return float(value) if kind is float else value


def _union_from_value(kind: Any, values: Any, where: str) -> Any:
    def fields_named(choice: Any) -> int:
        if not dataclasses.is_dataclass(choice):
            return -1
        named = values if isinstance(values, dict) else {}
        return sum(spec.name in named for spec in dataclasses.fields(choice))

    # If none fits, the error of the last one is raised: it has the most fields in common with the
    # values and is most likely the one that was meant.
    for choice in sorted(typing.get_args(kind), key=fields_named):
        try:
            return from_dict(choice, values, where)
        except UserError as error:
            last = error
    raise last


def _dataclass_from_dict(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{where}={values!r} must hold the fields of {kind.__name__}.")
    hints = typing.get_type_hints(kind, include_extras=True)
    # Files that earlier versions saved still load; config files in Python must use the new names.
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
