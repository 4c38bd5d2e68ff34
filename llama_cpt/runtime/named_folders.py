"""Parsing of command-line arguments that name folders: ``NAME=FOLDER`` or ``FOLDER``."""

from collections.abc import Sequence
from pathlib import Path

from llama_cpt.runtime.errors import UserError


def named_folders(arguments: Sequence[str]) -> dict[str, str]:
    """Return the folder of each argument by name.

    Without ``NAME=``, the name is the last component of the path. Raises UserError if a name or a
    folder is empty or two folders have the same name.
    """
    folders: dict[str, str] = {}
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        # A path can contain an equals sign.
        if not equals or "/" in name or Path(argument).exists():
            name, folder = Path(argument).resolve().name, argument
        if not (name and folder):
            raise UserError(f"{argument!r}: must be NAME=FOLDER or FOLDER.")
        if name in folders:
            raise UserError(f"two folders are named {name}: set another name with NAME={folder}.")
        folders[name] = folder
    return folders
