"""Text of a record from a field, a nested field, or a template of several fields."""

from dataclasses import dataclass
from functools import lru_cache
import re
from typing import Any

# A doubled brace, which stands for one brace, or a field name in braces.
_MARKS = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


@dataclass(frozen=True)
class Template:
    """A template, such as ``{title}: {body}``, that forms a text from several fields."""

    names: tuple[str, ...]
    """The names of the fields, in order. A name can occur several times."""
    between: tuple[str, ...]
    """The text before the first field, between the fields, and after the last field."""

    def fill(self, texts: list[str]) -> str:
        """Return the text of the template; ``texts`` are the texts of ``names``."""
        pairs = zip(texts, self.between[1:], strict=True)
        return self.between[0] + "".join(text + after for text, after in pairs)


@lru_cache
def find_template(text_field: str) -> Template | None:
    """Return the template ``text_field``; None if it is the name of a single field.

    A template contains at least one field name in braces. A doubled brace stands for one brace. All
    other characters, such as single braces, stand for themselves.
    """
    names, between, at = [], [""], 0
    for mark in _MARKS.finditer(text_field):
        between[-1] += text_field[at : mark.start()]
        at = mark.end()
        if mark[1]:
            names.append(mark[1])
            between.append("")
        else:
            between[-1] += mark[0][0]
    between[-1] += text_field[at:]
    return Template(tuple(names), tuple(between)) if names else None


def has_field(record: Any, name: str) -> bool:
    """Return whether ``find_value(record, name)`` returns a value."""
    try:
        find_value(record, name)
    except KeyError:
        return False
    return True


def find_value(record: Any, name: str) -> Any:
    """Return the value of the field ``name`` in the mapping ``record``.

    If there is no field with exactly this name, dots in ``name`` separate the names of nested
    fields: ``data.text`` is the field ``text`` of the mapping in the field ``data``. Raises
    KeyError if the record does not contain the field.
    """
    if name in record:
        return record[name]
    value = record
    for part in name.split("."):
        # The features of a TFDS dataset are a mapping without the base class Mapping.
        if not hasattr(value, "keys") or part not in value:
            raise KeyError(name)
        value = value[part]
    return value
