"""Writing a whole file so that no reader ever sees a part of it."""

from typing import Any

DRAFT_SUFFIX = ".draft"
"""Suffix of the name under which a file is written before it is renamed."""


def write_atomic(path: Any, content: bytes | str) -> None:
    """Write ``content`` to ``path`` (``pathlib`` or ``epath``, local or remote), or nothing.

    The content is written under another name and then renamed, which replaces an existing file. A
    text is encoded as UTF-8.
    """
    # The draft is in the same folder, because a rename is atomic only within a file system.
    draft = path.with_name(path.name + DRAFT_SUFFIX)
    draft.write_bytes(content.encode() if isinstance(content, str) else content)
    draft.replace(path)
