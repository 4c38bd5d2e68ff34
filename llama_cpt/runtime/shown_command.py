"""The text of a command as a user would type it."""

import os
from pathlib import Path
import shlex
import sys


def command_line(name: str, *arguments: str) -> str:
    """Return ``python -m llama_cpt.NAME ARGUMENTS``, quoted for a shell.

    The line starts the Python of ``interpreter()``, whose path can be relative to the working
    directory.
    """
    return shlex.join((interpreter(), "-m", f"llama_cpt.{name}", *arguments))


def new_shell() -> str:
    """Return the command that prepares a new shell for the lines of ``command_line``.

    The command changes to the working directory and sets ``PYTHONPATH`` if it is set now.
    """
    change = shlex.join(("cd", str(Path.cwd())))
    path = os.environ.get("PYTHONPATH")
    return f"{change} && export PYTHONPATH={shlex.quote(path)}" if path else change


def interpreter() -> str:
    """Return the path of the running Python, relative if the file is in the working directory.

    The word ``python`` alone would start a different Python in a shell in which the virtual
    environment is not activated.
    """
    executable = Path(sys.executable)
    # Resolve only the folder. In a virtual environment, the file is a link to a Python outside it.
    resolved = executable.parent.resolve() / executable.name
    if not resolved.is_relative_to(Path.cwd()):
        return sys.executable
    relative = resolved.relative_to(Path.cwd())
    # A shell searches PATH for a name without a slash.
    return str(relative) if len(relative.parts) > 1 else f"./{relative}"
