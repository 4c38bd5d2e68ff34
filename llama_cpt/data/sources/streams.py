"""Source files, local or remote, compressed or not, as streams of bytes."""

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
    """The file's name without the suffix of its compression, and what undoes that, or None."""
    for suffix, decompress in DECOMPRESSORS.items():
        if path.endswith(suffix):
            return path.removesuffix(suffix), decompress
    return path, None


@contextlib.contextmanager
def open_stream(path: str, decompress: Any) -> Iterator[tuple[Any, Any]]:
    """The file on disk, and the same decompressed."""
    with open_for_reading(path) as disk:
        if not decompress:
            yield disk, disk
        else:
            with decompress(disk) as file:
                yield disk, file


def skip(disk: Any, file: Any, count: int, path: str) -> None:
    """Pass over the first ``count`` bytes of ``file``; ``disk`` is the same compressed."""
    if file is disk:
        file.seek(count)
        return
    while count and (chunk := read(file, min(count, SKIP_BYTES), path)):
        count -= len(chunk)


def read(file: Any, size: int, path: str, after: str = "") -> bytes:
    """As ``file.read``, ``decoding_errors``."""
    with decoding_errors(path, after):
        return file.read(size)


@contextlib.contextmanager
def decoding_errors(path: str, after: str = "", *also: type[Exception]) -> Iterator[None]:
    """Around what decodes ``path``; ``also`` are errors of a broken file that this does not know.

    Raises UserError where it is broken (``after`` tells where), UnreachableError where its storage
    fails in a way that may pass.
    """
    try:
        yield
    except (EOFError, OSError, zlib.error, lzma.LZMAError, *also) as error:
        told = " ".join(str(error).split())
        # What a decoder says of a broken file has no number.
        if getattr(error, "errno", None) and is_transient(error):
            raise UnreachableError(f"{path}: cannot be read now ({told}).") from None
        raise UserError(f"{path}: broken{after} ({told}); is the file whole?") from None


def _zstd(disk: Any) -> Any:
    import pyarrow  # only this kind needs it

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(disk, mode="r"), "zstd")


DECOMPRESSORS = {
    ".gz": lambda disk: gzip.GzipFile(fileobj=disk),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstd,
}
