"""Append-only JSON Lines files. Lines are synced to disk; an incomplete last line is ignored."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import json
import os
from pathlib import Path
from typing import Any, TypeVar

from llama_cpt.runtime.errors import UserError

Line = TypeVar("Line")


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append ``values`` to ``path`` as one JSON line and sync the file to disk."""
    append_lines(path, [values])


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append one JSON line per entry of ``rows`` to ``path`` and sync the file to disk.

    An incomplete last line, which a killed process left, is removed first. Only one process at a
    time can write to the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_incomplete_line(path)
    text = "".join(json.dumps(values, ensure_ascii=False) + "\n" for values in rows)
    # Lone surrogates, which a model can produce, are not UTF-8 and are written as escapes.
    with open(path, "ab") as file:
        file.write(text.encode("utf-8", "backslashreplace"))
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, parse: Callable[[Any], Line]) -> Iterator[Line]:
    """Yield ``parse(value)`` for the JSON value of each line of ``path``, if the file exists.

    An incomplete last line is skipped. Raises UserError, which names the line, if a line is not
    JSON or ``parse`` raises ValueError.
    """
    if not path.exists():
        return
    # The part after the last line break is empty or an incomplete line of a killed process.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            yield parse(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}:{number}: {error}; fix the line, or move the file away to start over."
            ) from None


def _remove_incomplete_line(path: Path) -> None:
    if not path.exists():
        return
    with open(path, "rb+") as file:
        if not file.seek(0, os.SEEK_END):
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
