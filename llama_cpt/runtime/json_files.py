"""Reader of small JSON files that users and other programs write, with bounds on size and depth.

A damaged or hostile file causes one UserError that names the file and a remedy. The text of a file
takes at most ``MAX_BYTES``, and the parsed value about 20 times as much.
"""

import json
from typing import Any

from etils import epath

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.literal_paths import is_regular_file

MAX_BYTES = 16 << 20
"""The default maximum size of a file in bytes."""
MAX_DEPTH = 100
"""The maximum number of nested objects and lists. More deeply nested values can exceed the
recursion limit of functions that process JSON values."""


def read_json_object(path: str, remedy: str, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Return the JSON object in ``path``, a local file or a URL.

    ``remedy`` is the end of each error message, such as "download it again". Raises UserError if
    the file is missing, is not a regular file, is larger than ``max_bytes``, or does not hold a
    JSON object.
    """
    return parse_json_object(read_bounded(path, remedy, max_bytes=max_bytes), path, remedy)


def read_bounded(path: str, remedy: str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes of ``path``, a local file or a URL.

    Raises UserError if the file is missing, is not a regular file, or is larger than ``max_bytes``.
    """
    file = epath.Path(path)
    if not file.exists():
        raise UserError(f"{path}: no such file; {remedy}.")
    if not is_regular_file(path):
        raise UserError(f"{path}: not a regular file; {remedy}.")
    with file.open("rb") as opened:
        content = opened.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UserError(f"{path}: has more than {max_bytes:,} bytes; {remedy}.")
    return content


def parse_json_object(
    content: bytes, path: str, remedy: str, *, unique_names: bool = False
) -> dict[str, Any]:
    """Return the JSON object in ``content``, the bytes of the file ``path``.

    A byte-order mark is ignored. With ``unique_names``, a name that occurs twice in an object is an
    error; otherwise, its last value counts. Raises UserError if ``content`` is not a JSON object,
    or if it is nested more than ``MAX_DEPTH`` deep. The message ends with ``remedy``.
    """
    pairs = _require_unique if unique_names else None
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=pairs)
    except RecursionError:
        raise _too_deep(path, remedy) from None
    # JSONDecodeError and UnicodeDecodeError are ValueErrors. An integer with thousands of digits
    # causes a ValueError too.
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); {remedy}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must be a JSON object; {remedy}.")
    if not _is_shallow(value):
        raise _too_deep(path, remedy)
    return value


def _require_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in values if names.count(name) > 1)
        raise ValueError(f"the name {repeated[:80]!r} occurs twice in an object")
    return values


def _is_shallow(value: Any) -> bool:
    """Return whether ``value`` is nested at most ``MAX_DEPTH`` deep, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        nested = (entry for entry in level if isinstance(entry, dict | list))
        level = [
            entry
            for one in nested
            for entry in (one.values() if isinstance(one, dict) else one)
            if isinstance(entry, dict | list)
        ]
        if not level:
            return True
    return False


def _too_deep(path: str, remedy: str) -> UserError:
    return UserError(f"{path}: nested more than {MAX_DEPTH} deep; {remedy}.")
