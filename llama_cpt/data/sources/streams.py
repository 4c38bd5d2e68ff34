"""Byte streams of source files, local or remote, compressed or not."""

import bz2
from collections.abc import Iterator
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
    """Return the file's name without its compression suffix, and the decompressor or None."""
    for suffix, decompress in DECOMPRESSORS.items():
        if path.endswith(suffix):
            return path.removesuffix(suffix), decompress
    return path, None


@contextlib.contextmanager
def open_stream(path: str, decompress: Any) -> Iterator[tuple[Any, Any]]:
    """Open ``path``; yield the file on disk and its decompressed stream."""
    with open_for_reading(path) as disk:
        if not decompress:
            yield disk, disk
        else:
            with decompress(disk) as file:
                yield disk, file


def skip(disk: Any, file: Any, count: int, path: str) -> None:
    """Skip the first ``count`` bytes of ``file``, the decompressed stream of ``disk``."""
    if file is disk:
        file.seek(count)
        return
    while count and (chunk := read(file, min(count, SKIP_BYTES), path)):
        count -= len(chunk)


def read(file: Any, size: int, path: str, after: str = "") -> bytes:
    """Read ``size`` bytes of ``file``; raise as ``decoding_errors`` does."""
    with decoding_errors(path, after):
        return file.read(size)


@contextlib.contextmanager
def decoding_errors(path: str, after: str = "", *also: type[Exception]) -> Iterator[None]:
    """Context manager that translates the errors of decoding ``path``.

    ``also`` names further exceptions of a broken file. Raises UserError if the file is broken
    (``after`` is the position for the message), UnreachableError if its storage fails in a
    transient way.
    """
    try:
        yield
    except (EOFError, OSError, zlib.error, lzma.LZMAError, *also) as error:
        reason = " ".join(str(error).split())
        # Errors of the storage have an errno, those of a decoder have none.
        if getattr(error, "errno", None) and is_transient(error):
            raise UnreachableError(f"{path}: cannot be read now ({reason}).") from None
        raise UserError(f"{path}: broken{after} ({reason}); is the file complete?") from None


def _zstd(disk: Any) -> Any:
    import pyarrow  # Slow to import, and only this format needs it.

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(disk, mode="r"), "zstd")


DECOMPRESSORS = {
    ".gz": lambda disk: gzip.GzipFile(fileobj=disk),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstd,
}
