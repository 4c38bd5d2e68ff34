"""Byte streams of source files, which can be local or remote, compressed or uncompressed."""

import bz2
from collections.abc import Callable, Generator
import contextlib
import gzip
import io
import lzma
from typing import Any
import zlib

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.literal_paths import open_for_reading
from llama_cpt.runtime.retry import is_client_error, is_transient
from llama_cpt.runtime.storage import UnreachableError

SKIP_BYTES = 4 << 20
# A file that decompresses to more than BOMB_BYTES, and to more than MAX_EXPANSION times its own
# size, is rejected. Text is compressed 2 to 10 times, repeated log lines up to 60 times, and zeros
# more than 1,000 times.
BOMB_BYTES = 64 << 20
MAX_EXPANSION = 200
_COMPRESSED_BYTES = 1 << 16
_BUFFER_BYTES = 1 << 20


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
                yield disk, _Decompressed(disk, file, path)


class _Decompressed:
    """The decompressed stream of an open file; raises UserError if the file expands too much."""

    def __init__(self, disk: Any, file: Any, path: str) -> None:
        self._disk, self._file, self._path = disk, file, path
        self._count = 0

    def read(self, size: int) -> bytes:
        """Return the next ``size`` bytes, or fewer at the end of the file."""
        data = self._file.read(size)
        self._count += len(data)
        if self._count > BOMB_BYTES:
            check_expansion(self._path, self._disk.tell(), self._count)
        return data


def check_expansion(path: str, compressed: int, decompressed: int) -> None:
    """Raise UserError if a file decompresses to far more than its own size, as no text does."""
    if decompressed > max(BOMB_BYTES, MAX_EXPANSION * compressed):
        raise UserError(
            f"{path}: {compressed:,} bytes decompress to {decompressed:,} or more, over "
            f"{MAX_EXPANSION} times as many; this is not text. If it is intended, decompress the "
            "file."
        )


def skip(disk: Any, file: Any, count: int, path: str) -> None:
    """Skip the first ``count`` bytes of ``file``, the decompressed stream of the file ``disk``."""
    if file is disk:
        file.seek(count)
        return
    while count and (chunk := read(file, min(count, _BUFFER_BYTES), path)):
        count -= len(chunk)


def read(file: Any, size: int, path: str, after: str = "") -> bytes:
    """Return the next ``size`` bytes of ``file``, or fewer at the end of the file.

    ``after`` describes the position in error messages. Raises UserError if the file is damaged or
    expands too much, and UnreachableError if the storage has a transient failure.
    """
    with decoding_errors(path, after):
        return file.read(size)


@contextlib.contextmanager
def decoding_errors(path: str, after: str = "", *also: type[Exception]) -> Generator[None]:
    """Context manager that turns errors in reading and decompressing ``path`` into UserError.

    Raises UserError if the file is damaged, with the position ``after`` in the message, and
    UnreachableError if the storage has a transient failure. ``also`` lists further exception types
    that a damaged file causes. Errors of a client of remote storage are not changed, because
    ``storage_errors_as_user_errors`` converts them.
    """
    try:
        yield
    except (EOFError, OSError, zlib.error, lzma.LZMAError, *also) as error:
        if is_client_error(error):
            raise
        reason = " ".join(str(error).split())
        # Errors of the storage have an errno; errors of a decoder do not.
        if getattr(error, "errno", None) and is_transient(error):
            raise UnreachableError(f"{path}: cannot be read now ({reason}).") from None
        raise UserError(f"{path}: broken{after} ({reason}); is the file complete?") from None


class _Concatenated(io.RawIOBase):
    """The decompressed content of a file that contains one or more compressed streams.

    The readers of ``bz2`` and ``lzma`` end without an error at bytes that do not begin a stream.
    Here such bytes are damage, because the text after them would be missing.
    """

    def __init__(self, disk: Any, new_decoder: Callable[[], Any]) -> None:
        self._disk, self._new_decoder = disk, new_decoder
        self._decoder = new_decoder()
        self._raw = b""
        self._begun = False
        """True if the decoder has received bytes of a stream, but not the end of the stream."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes into ``buffer``; return their number, which is 0 at the end."""
        while True:
            if not self._raw and self._decoder.needs_input:
                self._raw = self._disk.read(_COMPRESSED_BYTES)
                if not self._raw and self._begun:
                    raise EOFError("the compressed data ends before its end marker")
                if not self._raw:
                    return 0
            if not self._begun:
                # Zeros can follow a stream in the XZ format.
                self._raw = self._raw.lstrip(b"\0")
                if not self._raw:
                    continue
            data = self._decoder.decompress(self._raw, len(buffer))
            self._raw, self._begun = b"", True
            if self._decoder.eof:
                self._raw, self._begun = self._decoder.unused_data, False
                self._decoder = self._new_decoder()
            if data:
                buffer[: len(data)] = data
                return len(data)


def _concatenated(new_decoder: Callable[[], Any]) -> Callable[[Any], io.BufferedReader]:
    """Return the function that opens a file of streams of the format of ``new_decoder``."""
    return lambda disk: io.BufferedReader(_Concatenated(disk, new_decoder), _BUFFER_BYTES)


def _zstd(disk: Any) -> Any:
    """Return the decompressed stream of a file in the Zstandard format."""
    import pyarrow  # Imported here, because the import is slow and only .zst needs it.

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(disk, mode="r"), "zstd")


# Compression suffix -> function that returns the decompressed stream of an open file.
DECOMPRESSORS = {
    ".gz": lambda disk: gzip.GzipFile(fileobj=disk),
    ".bz2": _concatenated(bz2.BZ2Decompressor),
    ".xz": _concatenated(lzma.LZMADecompressor),
    ".zst": _zstd,
}
