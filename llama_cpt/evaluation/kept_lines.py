"""JSON Lines that a killed run may end in the middle of: appended line by line, each on disk."""

from collections.abc import Iterable, Iterator, Mapping
import json
import os
from pathlib import Path
from typing import Any

from llama_cpt.errors import UserError
from llama_cpt.fields import from_dict


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add ``values`` to ``path``; kept once this returns."""
    append_lines(path, [values])


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add a line for each of ``rows`` to ``path``; kept once this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(values, ensure_ascii=False) + "\n" for values in rows)
    with open(path, "ab") as file:
        file.write(text.encode("utf-8", "backslashreplace"))
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, kind: Any) -> Iterator[Any]:
    """The lines of ``path`` as dataclass ``kind``; half a line at its end is cut off.

    Raises UserError, naming the line, for what is something else.
    """
    if not path.exists():
        return
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        os.truncate(path, len(whole))
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            yield from_dict(kind, json.loads(line), kind.__name__)
        except ValueError as error:
            raise UserError(
                f"{path}:{number}: {error}; mend the line, or move the file away to begin anew."
            ) from None
