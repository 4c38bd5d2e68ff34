"""Readers of the world's data files: word tables in TOML and sentence templates in text files."""

from functools import cache
from pathlib import Path
import tomllib
from typing import Any

from llama_cpt.runtime.errors import UserError

_FOLDER = Path(__file__).parent
_TEMPLATE_FILES = ("facts", "questions", "sums", "writings", "talk", "stories")


@cache
def read_table(name: str) -> dict[str, Any]:
    """Return the content of a TOML file of this folder, in the order of the file.

    Raises UserError if the file is missing or damaged.
    """
    path = _FOLDER / name
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None


@cache
def read_templates(code: str) -> dict[str, tuple[str, ...]]:
    """Return a language's sentence templates by key, from lines ``key: template``.

    A key may have several lines, which are alternatives; their order is part of the data, because
    the random draws depend on it. Raises UserError if a file is missing or damaged.
    """
    found: dict[str, list[str]] = {}
    for name in _TEMPLATE_FILES:
        path = _FOLDER / "languages" / code / f"{name}.txt"
        try:
            lines = path.read_text("utf-8").splitlines()
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
