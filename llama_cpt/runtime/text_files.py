"""Reader of users' text files with any line ends, with or without a byte order mark."""

from collections.abc import Iterator
import json
from typing import Any

from etils import epath

from llama_cpt.runtime.errors import UserError


def read_text(path: Any) -> str:
    r"""Return the text of a file, with ``\n`` as the only line end and without a byte order mark.

    ``path`` is local or remote. Raises UserError if the file is not UTF-8.
    """
    return decode_text(epath.Path(path).read_bytes(), str(path))


def text_lines(path: Any) -> list[str]:
    """Return the lines of a text file without their ends; see ``read_text``."""
    lines = read_text(path).split("\n")
    return lines if lines[-1] else lines[:-1]


def decode_text(content: bytes, label: str) -> str:
    r"""Return UTF-8 bytes as text, with ``\n`` as the only line end and without a byte order mark.

    Raises UserError, which begins with ``label`` and the line, if the bytes are not UTF-8.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The position is relative to the content after the byte order mark.
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{label}:{line}: not UTF-8; save the file as UTF-8 text.") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def json_lines(text: str, label: str, remedy: str) -> Iterator[tuple[int, Any]]:
    r"""Yield the number and the JSON value of each line of ``text``; blank lines are skipped.

    Only ``\n`` ends a line: a JSON string can contain other line separators, such as U+2028. Raises
    UserError, which names ``label``, the line and the ``remedy``, if a line is not JSON.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except RecursionError:
                raise UserError(f"{label}:{number}: nested too deeply; {remedy}.") from None
            except ValueError as error:
                raise UserError(f"{label}:{number}: not JSON ({error}); {remedy}.") from None
