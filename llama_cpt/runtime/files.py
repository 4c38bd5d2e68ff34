"""Atomic writing of a file: readers see either the old content or the complete new content."""

from typing import Any

DRAFT_SUFFIX = ".draft"
"""Suffix of the name under which a file is written before it is renamed."""


def write_atomic(path: Any, content: bytes | str) -> None:
    """Write ``content`` to ``path`` atomically; text is encoded as UTF-8.

    ``path`` is a ``pathlib`` or ``epath`` path, local or remote. The content is first written to a
    temporary file in the same folder, which then replaces ``path``.
    """
    # The draft is in the same folder, because a rename is atomic only within a file system.
    draft = path.with_name(path.name + DRAFT_SUFFIX)
    draft.write_bytes(content.encode() if isinstance(content, str) else content)
    draft.replace(path)
