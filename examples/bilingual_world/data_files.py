"""Readers for the data files of the world: word tables in TOML, sentence templates in text."""

from functools import cache
from pathlib import Path
import tomllib
from typing import Any

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.text_files import read_text, text_lines

_FOLDER = Path(__file__).parent
_TEMPLATE_FILES = ("facts", "questions", "sums", "writings", "talk", "stories")


@cache
def read_table(name: str) -> dict[str, Any]:
    """Return the content of a TOML file, with keys in the order of the file.

    ``name`` is relative to this module's folder. Raises UserError if the file is missing or is not
    valid TOML.
    """
    path = _FOLDER / name
    try:
        return tomllib.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None


@cache
def read_templates(code: str) -> dict[str, tuple[str, ...]]:
    """Return the sentence templates of a language by key.

    The files have lines ``key: template``. Templates with the same key are alternatives. Their
    order is part of the data, because random draws depend on the order. Raises UserError if a file
    is missing or a line has a different format.
    """
    found: dict[str, list[str]] = {}
    for name in _TEMPLATE_FILES:
        path = _FOLDER / "languages" / code / f"{name}.txt"
        try:
            lines = text_lines(path)
        except (OSError, ValueError) as error:
            raise _damaged(path, str(error)) from None
        for number, line in enumerate(lines, start=1):
            key, separator, template = line.partition(": ")
            if not separator:
                raise _damaged(path, f"line {number} is not `key: template`: {line!r}")
            found.setdefault(key, []).append(template)
    return {key: tuple(ways) for key, ways in found.items()}


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: {reason}; restore the file from version control.")
