"""Fields of config sections: declaration, conversion from JSON, and validation."""

from collections.abc import Callable, Hashable, Iterator
import contextlib
import dataclasses
import difflib
import json
import math
import types
import typing
from typing import Annotated, Any, Literal

from llama_cpt.runtime.errors import UserError

MAX_INTEGER = 2**63 - 1
"""Maximum magnitude of an integer in a config or file."""


@dataclasses.dataclass(frozen=True)
class FieldTraits:
    """Properties of a config field, declared by ``option`` or ``traits``.

    The defaults are safe: two configs that differ in a field without traits do not share a compiled
    step, and the field can change on resume only with ``--allow-change``.
    """

    former_name: str = ""
    """The name of the field in JSON files of earlier versions; empty if it was not renamed."""
    compiled: bool | Callable[[Any], Hashable] = True
    """Whether the compiled step depends on the value. A function means that the step depends only
    on the result of the function, which is called with the section that contains the field."""
    on_resume: Literal["fixed", "warn", "never", "ignore"] = "fixed"
    """Effect of a changed value on resume. ``fixed``: an error without ``--allow-change``.
    ``warn``: a warning. ``never``: always an error. ``ignore``: no effect, for example for the
    path of a file, because the fingerprint of the file is checked instead."""
    is_path: bool = False
    """True if the value is a path, in which ``~`` is expanded to the home folder."""


def traits(**declared: Any) -> dict[str, FieldTraits]:
    """Return the metadata of a dataclass field without a default.

    ``declared`` are arguments of FieldTraits. Type checkers recognize
    ``field(metadata=traits(...))`` as a field without a default.
    """
    return {"traits": FieldTraits(**declared)}


def option(default: Any, **declared: Any) -> Any:
    """Declare a dataclass field with a default; ``declared`` are arguments of FieldTraits.

    If ``default`` is callable, it is the field's default factory.
    """
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=traits(**declared))
    return dataclasses.field(default=default, metadata=traits(**declared))


def field_traits(spec: "dataclasses.Field[Any]") -> FieldTraits:
    """Return the declared traits of a dataclass field, or ``FieldTraits()`` if it declares none."""
    return spec.metadata.get("traits", FieldTraits())


def former_names(kind: Any) -> dict[str, str]:
    """Return the present name of each renamed field of dataclass ``kind``, by former name."""
    return {
        former: spec.name
        for spec in dataclasses.fields(kind)
        if (former := field_traits(spec).former_name)
    }


def traits_by_name(kind: type, above: str = "") -> dict[str, FieldTraits]:
    """Return the traits of all fields of ``kind`` and its sections, by dotted field name.

    The name of a field in a tuple of sections contains no index: ``data.original.weight``.
    """
    found = {}
    hints = typing.get_type_hints(kind)
    for spec in dataclasses.fields(kind):
        found[above + spec.name] = field_traits(spec)
        for section in _sections_in(hints[spec.name]):
            found |= traits_by_name(section, f"{above}{spec.name}.")
    return found


def _sections_in(kind: Any) -> Iterator[type]:
    """Yield the dataclasses in an annotation such as ``LoraConfig | None``."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        yield kind
    for argument in typing.get_args(kind):
        yield from _sections_in(argument)


def compiled_values(section: Any) -> tuple[Hashable, ...]:
    """Return a hashable tuple of the values in ``section`` on which the compiled step depends.

    The tuple consists of the class name and (field name, value) pairs. The class name is included
    because objectives of different classes compile to different programs even if their values are
    equal.
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
    """Return ``section`` with ``transform`` applied to each path in it and in its subsections."""

    def mapped(value: Any, is_path: bool) -> Any:
        # Subsections are always visited, because the traits of their fields mark the paths.
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
    """Return the dotted ``path`` with the present name of its last field.

    Returns '' if that field was not renamed.
    """
    *parents, last = path
    for name in parents:
        section = getattr(section, name, None)
    renamed = former_names(section).get(last) if dataclasses.is_dataclass(section) else None
    return ".".join([*parents, renamed]) if renamed else ""


class ConfigSection:
    """Base class of config sections, which converts and validates fields by their annotations."""

    def __post_init__(self) -> None:
        """Convert the fields with ``from_dict``, for example lists to tuples."""
        hints = typing.get_type_hints(type(self), include_extras=True)
        for name, kind in hints.items():
            value = from_dict(kind, getattr(self, name), f"{type(self).__name__}.{name}")
            object.__setattr__(self, name, value)  # The dataclass is frozen.


def require_at_least(least: int, section: Any, where: str, *names: str) -> None:
    """Raise UserError unless the named fields of ``section`` are finite and at least ``least``.

    ``where`` is the name of the section in the message.
    """
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
    """Raise UserError unless the named fields of ``section`` are in [0, 1].

    If ``below_one`` is True, the range is [0, 1). ``where`` is the name of the section in the
    message.
    """
    for name in names:
        value = getattr(section, name)
        if not 0 <= value <= 1 or (below_one and value == 1):
            raise UserError(f"{where}.{name}={value} must be in [0, 1{')' if below_one else ']'}.")


def require_nonempty(where: str, **paths: str) -> None:
    """Raise UserError if one of ``paths`` is empty; an empty path would mean the current folder.

    ``where`` is the name of the section in the message.
    """
    for name, path in paths.items():
        if not path:
            raise UserError(f"{f'{where}.{name}'.lstrip('.')} is empty; set it.")


def to_dict(config: Any) -> dict[str, Any]:
    """Return the config as a dict of JSON values; ``from_dict`` restores an equal config."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flat_fields(values: Any, name: str = "") -> dict[str, Any]:
    """Return the values of the fields in ``values``, which is from ``to_dict``, by dotted name.

    The names are those of command-line options, such as ``data.original.0.name``. A list without
    sections, such as the stages of a weight, is one value.
    """
    if isinstance(values, dict):
        inner = values.items()
    elif isinstance(values, list) and any(isinstance(value, dict) for value in values):
        inner = enumerate(values)
    else:
        return {name: values}
    return {
        field: leaf
        for key, value in inner
        for field, leaf in flat_fields(value, f"{name}.{key}" if name else str(key)).items()
    }


def from_dict(kind: Any, values: Any, where: str = "config") -> Any:
    """Convert JSON ``values`` to type ``kind``, for example a dictionary to a dataclass.

    ``where`` is the name of the field in error messages. Raises UserError if a value has a wrong
    type or a field is unknown or missing.
    """
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return from_dict(typing.get_args(kind)[0], values, where)
    if dataclasses.is_dataclass(kind):
        if isinstance(kind, type) and isinstance(values, kind):
            return values
        return _dataclass_from_dict(kind, values, where)
    if origin in (typing.Union, types.UnionType):
        return _union_from_value(kind, values, where)
    if origin is tuple:
        return _tuple_from_list(kind, values, where)
    if origin is Literal:
        if values not in typing.get_args(kind):
            options = ", ".join(map(repr, typing.get_args(kind)))
            raise UserError(f"{where}={_shown(values)} must be one of {options}.")
        return values
    return values if kind is Any else _scalar_or_collection(kind, values, where)


def did_you_mean(name: str, known: list[str]) -> str:
    """Return ``; did you mean 'x'?`` if a name in ``known`` is similar to ``name``, else ''."""
    closest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {closest[0]!r}?" if closest else ""


def _scalar_or_collection(kind: Any, values: Any, where: str) -> Any:
    """Return ``values`` as a number, a string, or a list or dict with entries of one type."""
    kinds = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return [from_dict(kinds[0], v, f"{where}.{i}") for i, v in enumerate(_list(values, where))]
    if typing.get_origin(kind) is dict and isinstance(values, dict):
        return {name: from_dict(kinds[1], v, f"{where}.{name}") for name, v in values.items()}
    return _scalar(typing.get_origin(kind) or kind, values, where)


def _scalar(kind: Any, value: Any, where: str) -> Any:
    # A JSON number without a fraction is an int, which a float field accepts. In Python, bool is a
    # subclass of int, but True is not a number of steps.
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{where}={_shown(value)} must be {getattr(kind, '__name__', kind)}.")
    # Python's integers have no upper limit, but the integers of JAX and of file formats have 64
    # bits.
    if type(value) is int and not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise UserError(f"{where}={_shown(value)} must be at most {MAX_INTEGER} in magnitude.")
    return float(value) if kind is float else value


def _union_from_value(kind: Any, values: Any, where: str) -> Any:
    def fields_named(choice: Any) -> int:
        if not dataclasses.is_dataclass(choice):
            return -1
        named = values if isinstance(values, dict) else {}
        return sum(spec.name in named for spec in dataclasses.fields(choice))

    # If no type fits, raise the error of the last type. It has the most fields with names in
    # ``values``, so it is most likely the type that the user meant.
    *others, closest = sorted(typing.get_args(kind), key=fields_named)
    for choice in others:
        with contextlib.suppress(UserError):
            return from_dict(choice, values, where)
    return from_dict(closest, values, where)


def _dataclass_from_dict(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(
            f"{where}={_shown(values)} must be an object with the fields of {kind.__name__}."
        )
    hints = typing.get_type_hints(kind, include_extras=True)
    # JSON files of earlier versions still load; config files in Python must use the new names.
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


def _list(values: Any, where: str) -> list[Any] | tuple[Any, ...]:
    """Return ``values`` if it is a list; otherwise, raise UserError."""
    if not isinstance(values, list | tuple):
        raise UserError(f"{where}={_shown(values)} must be a list.")
    return values


def _shown(value: Any) -> str:
    """Return the start of ``repr(value)``, because a value in a damaged file can have any size."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _tuple_from_list(kind: Any, values: Any, where: str) -> tuple[Any, ...]:
    kinds = typing.get_args(kind)
    values = _list(values, where)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(values)
    if len(kinds) != len(values):
        raise UserError(f"{where}={_shown(values)} must have {len(kinds)} entries.")
    return tuple(
        from_dict(k, v, f"{where}.{i}") for i, (k, v) in enumerate(zip(kinds, values, strict=True))
    )
