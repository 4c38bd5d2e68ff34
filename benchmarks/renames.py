"""The table ``renames.csv``, in which each line has a kind, an old name and a new name.

The kind determines where the names occur and how they are split into parts:

===========  ==================================================  =================================
kind         applies to                                          example
===========  ==================================================  =================================
module       modules that the runs start or import               ``llama_cpt.plan``
identifier   functions and arguments that the runs use; JSON     ``write_world``
             values
config_file  configs that the runs name                          ``configs/demo_base.py``
option       one whole word of a command line                    ``--allow-change``, ``to-hf``
field        config fields, in options and in JSON               ``data.chat.learn``
json_key     other keys in JSON                                  ``chat_counts.learnt_tokens``
metric       keys of ``metrics.jsonl``                           ``mixture/NAME/passes``
column       columns of CSV files                                ``mixture_order``
array        arrays in checkpoints                               ``trained/layers/query``
file         files and folders of the outputs                    ``scores/NAME/bpb.jsonl``
===========  ==================================================  =================================

A line applies to every name that contains its parts in sequence, so ``chat.learn`` applies to
``train.data.chat.learn``. The part ``NAME`` matches any single part, which is copied to the new
name.
"""

from collections.abc import Iterable, Sequence
import csv
from pathlib import Path

FILE = Path("benchmarks") / "renames.csv"
HEADER = ["kind", "old", "new"]
WILDCARD = "NAME"
# The separator of parts per kind. If it is empty, the whole name is one part.
SEPARATORS = {
    "module": ".",
    "identifier": "",
    "config_file": "/",
    "option": "",
    "field": ".",
    "json_key": ".",
    "metric": "/",
    "column": "",
    "array": "/",
    "file": "/",
}

Parts = tuple[str, ...]


class Renames:
    """A map from old names to new names. An empty map changes no name."""

    def __init__(self, lines: Iterable[Sequence[str]] = ()) -> None:
        self._by_kind: dict[str, list[tuple[Parts, Parts]]] = {kind: [] for kind in SEPARATORS}
        for kind, old, new in lines:
            self._add(kind, old, new)
        for pairs in self._by_kind.values():
            pairs.sort(key=lambda pair: -len(pair[0]))

    def apply(self, kind: str, name: str) -> str:
        """Return the new name of ``name``.

        If several lines match, the line with the most parts applies.
        """
        separator = SEPARATORS[kind]
        parts = _split(name, separator)
        renamed: list[str] = []
        while parts:
            used, new = self._longest(kind, parts)
            renamed += new
            parts = parts[used:]
        return separator.join(renamed)

    def _longest(self, kind: str, parts: Parts) -> tuple[int, Parts]:
        for old, new in self._by_kind[kind]:
            head = parts[: len(old)]
            if len(head) == len(old) and all(
                want in (WILDCARD, have) for want, have in zip(old, head, strict=True)
            ):
                kept = (have for want, have in zip(old, head, strict=True) if want == WILDCARD)
                return len(old), tuple(next(kept) if one == WILDCARD else one for one in new)
        return 1, parts[:1]

    def _add(self, kind: str, old: str, new: str) -> None:
        if kind not in SEPARATORS:
            raise ValueError(f"kind {kind!r} must be one of {', '.join(SEPARATORS)}")
        pair = _split(old, SEPARATORS[kind]), _split(new, SEPARATORS[kind])
        if not old or not new or old == new:
            raise ValueError(f"{kind} {old!r} -> {new!r}: give two different names")
        if pair[0].count(WILDCARD) != pair[1].count(WILDCARD):
            raise ValueError(f"{kind} {old} -> {new}: both need the same number of {WILDCARD}")
        for column, name in ((0, old), (1, new)):
            # If two names were mapped to one name, a difference could stay hidden.
            if any(other[column] == pair[column] for other in self._by_kind[kind]):
                raise ValueError(f"{kind} {name} is listed twice")
        self._by_kind[kind].append(pair)


def read_renames(path: Path) -> Renames:
    """Return the map in the file ``path``, or an empty map if the file does not exist.

    Raises ValueError if the file is malformed.
    """
    if not path.exists():
        return Renames()
    with path.open(newline="", encoding="utf-8") as file:
        header, *lines = list(csv.reader(file)) or [[]]
    if header != HEADER or any(len(line) != len(HEADER) for line in lines):
        raise ValueError(f"{path}: every line must have the columns {','.join(HEADER)}")
    try:
        return Renames(lines)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _split(name: str, separator: str) -> Parts:
    return tuple(name.split(separator)) if separator else (name,)
