"""Byte streams of source files, which can be local or remote, compressed or uncompressed."""

import bz2
from collections.abc import Generator
import contextlib
import gzip
import lzma
from typing import Any
import zlib

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.literal_paths import open_for_reading
from llama_cpt.runtime.retry import is_transient
from llama_cpt.runtime.storage import UnreachableError

SKIP_BYTES = 4 << 20


def split_compression(path: str) -> tuple[str, Any]:
    """Return ``path`` without its compression suffix, and the function that decompresses it.

    The function is None if the file is not compressed.
    """
    for suffix, decompress in DECOMPRESSORS.items():
        if path.endswith(suffix):
            return path.removesuffix(suffix), decompress
    return path, None


@contextlib.contextmanager
def open_stream(path: str, decompress: Any) -> Generator[tuple[Any, Any]]:
    """Context manager that yields the file at ``path`` and its decompressed stream."""
    with open_for_reading(path) as disk:
        if not decompress:
            yield disk, disk
        else:
            with decompress(disk) as file:
                yield disk, file


def skip(disk: Any, file: Any, count: int, path: str) -> None:
    """Skip the first ``count`` bytes of ``file``, the decompressed stream of the file ``disk``."""
    if file is disk:
        file.seek(count)
        return
    while count and (chunk := read(file, min(count, SKIP_BYTES), path)):
        count -= len(chunk)


def read(file: Any, size: int, path: str, after: str = "") -> bytes:
    """Return the next ``size`` bytes of ``file``, or fewer at the end of the file.

    ``after`` describes the position in error messages. Raises UserError if the file is damaged, and
    UnreachableError if the storage has a transient failure.
    """
    with decoding_errors(path, after):
        return file.read(size)


@contextlib.contextmanager
def decoding_errors(path: str, after: str = "", *also: type[Exception]) -> Generator[None]:
    """Context manager that turns errors in reading and decompressing ``path`` into UserError.

    Raises UserError if the file is damaged, with the position ``after`` in the message, and
    UnreachableError if the storage has a transient failure. ``also`` lists further exception types
    that a damaged file causes.
    """
    try:
        yield
    except (EOFError, OSError, zlib.error, lzma.LZMAError, *also) as error:
        reason = " ".join(str(error).split())
        # Errors of the storage have an errno; errors of a decoder do not.
        if getattr(error, "errno", None) and is_transient(error):
            raise UnreachableError(f"{path}: cannot be read now ({reason}).") from None
        raise UserError(f"{path}: broken{after} ({reason}); is the file complete?") from None


def _zstd(disk: Any) -> Any:
    """Return the decompressed stream of a file in the Zstandard format."""
    import pyarrow  # Imported here, because the import is slow and only .zst needs it.

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(disk, mode="r"), "zstd")


# Compression suffix -> function that returns the decompressed stream of an open file.
DECOMPRESSORS = {
    ".gz": lambda disk: gzip.GzipFile(fileobj=disk),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstd,
}
