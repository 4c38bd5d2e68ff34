"""Small files ``STEP.KIND`` next to a checkpoint, which are removed with it."""

import re

from etils import epath

from llama_cpt.runtime.files import write_atomic

SAVING = "saving"
"""Mark of a save that has started; removed once the checkpoint is committed."""
UNHEALTHY = "unhealthy"
"""Mark of a checkpoint whose measured loss is no better than guessing."""


def put(folder: epath.Path, step: int, kind: str, text: str = "") -> None:
    """Write the mark ``kind`` of ``step``; ``text`` is an explanation for readers."""
    write_atomic(folder / f"{step}.{kind}", f"{text}\n".encode())


def remove(folder: epath.Path, step: int, kind: str) -> None:
    """Remove the mark ``kind`` of ``step`` if it exists."""
    (folder / f"{step}.{kind}").unlink(missing_ok=True)


def marked(folder: epath.Path, kind: str) -> set[int]:
    """Return the steps in ``folder`` that have the mark ``kind``."""
    if not folder.exists():
        return set()
    found = (re.fullmatch(rf"(\d+)\.{kind}", path.name) for path in folder.iterdir())
    return {int(match[1]) for match in found if match}
