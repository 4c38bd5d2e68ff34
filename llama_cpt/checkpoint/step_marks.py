"""Marks: small files ``STEP.KIND`` next to a checkpoint, removed together with the checkpoint."""

import re

from etils import epath

from llama_cpt.runtime.atomic import write_atomic

SAVING = "saving"
"""Mark of a save that has started. It is removed after the checkpoint is committed."""
UNHEALTHY = "unhealthy"
"""Mark of a checkpoint with a measured loss at or above ``health.dead_loss``."""


def put(folder: epath.Path, step: int, kind: str, text: str = "") -> None:
    """Write the file ``STEP.KIND`` to ``folder``, with one line ``text`` as its content."""
    write_atomic(folder / f"{step}.{kind}", f"{text}\n".encode())


def remove(folder: epath.Path, step: int, kind: str) -> None:
    """Remove the file ``STEP.KIND`` from ``folder`` if it exists."""
    (folder / f"{step}.{kind}").unlink(missing_ok=True)


def marked(folder: epath.Path, kind: str) -> set[int]:
    """Return the steps for which ``folder`` contains a file ``STEP.KIND``."""
    if not folder.exists():
        return set()
    found = (re.fullmatch(rf"(\d+)\.{kind}", path.name) for path in folder.iterdir())
    return {int(match[1]) for match in found if match}
