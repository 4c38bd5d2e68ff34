"""Elements of a JSON array, found without parsing the array as a whole."""

from collections.abc import Iterable, Iterator
import re

from llama_cpt.runtime.errors import UserError

# Patterns of the bytes at which the scanner changes its state: between elements, and within an
# element, in which commas are ignored.
_MARKS = re.compile(rb'["\[\]{},]'), re.compile(rb'["\[\]{}]')
_BACKSLASH = 0x5C
_BLANK = re.compile(rb"[ \t\r\n]*")


def split_array(path: str, chunks: Iterable[bytes], max_bytes: int) -> Iterator[bytes | int]:
    """Yield each element of the JSON array in ``chunks`` as a JSON text.

    An element of more than ``max_bytes`` is not kept; its size in bytes is yielded in its place.
    The elements are not validated. Raises UserError if ``chunks`` is not one array.
    """
    scanner = _Scanner(path, max_bytes)
    for chunk in chunks:
        yield from scanner.feed(chunk)
    if not scanner.ended:
        raise scanner.error("its end is missing")


class _Scanner:
    """The state of the search for the ends of elements, which can be split across chunks."""

    def __init__(self, path: str, max_bytes: int) -> None:
        self.ended = False
        self._path, self._max_bytes = path, max_bytes
        self._depth = 0
        """Number of open brackets: 0 before the array, 1 between its elements."""
        self._in_string = self._escaped = False
        self._held: list[bytes] = []
        self._size = self._count = 0

    def error(self, reason: str) -> UserError:
        """Return the error for a file that is not one JSON array."""
        return UserError(
            f"{self._path}: not a JSON array ({reason}, after element {self._count}); is the file "
            "complete?"
        )

    def feed(self, chunk: bytes) -> Iterator[bytes | int]:
        """Yield the elements that end in ``chunk``."""
        at = self._begin(chunk) if not self._depth and not self.ended else 0
        start = at
        while at < len(chunk) and not self.ended:
            if self._in_string:
                at = self._skip_string(chunk, at)
                continue
            found = _MARKS[self._depth > 1].search(chunk, at)
            if not found:
                break
            at = found.end()
            if self._ends_element(found[0]):
                yield from self._end(chunk[start : at - 1], last=self._depth == 0)
                start = at
        if not self.ended:
            self._hold(chunk[start:])
        elif chunk[start:].strip():
            raise self.error("text follows its end")

    def _ends_element(self, mark: bytes) -> bool:
        """Update the state after ``mark``; return whether ``mark`` ends an element of the array."""
        if mark == b'"':
            self._in_string = True
        elif mark in b"[{":
            self._depth += 1
        elif mark in b"]}":
            self._depth -= 1
            if self._depth == 0 and mark != b"]":
                raise self.error("} closes it")
        return self._depth == 0 or (mark == b"," and self._depth == 1)

    def _begin(self, chunk: bytes) -> int:
        """Skip whitespace, and return the position after the bracket that opens the array."""
        at = 3 if chunk.startswith(b"\xef\xbb\xbf") else 0
        blank = _BLANK.match(chunk, at)
        at = blank.end() if blank else at
        if at < len(chunk):
            self._depth = 1
        return at + 1

    def _skip_string(self, chunk: bytes, at: int) -> int:
        """Return the position after the string in ``chunk`` that continues at ``at``."""
        if self._escaped:
            self._escaped = False
            return at + 1
        while True:
            quote = chunk.find(b'"', at)
            before = end = len(chunk) if quote < 0 else quote
            while before > at and chunk[before - 1] == _BACKSLASH:
                before -= 1
            # An odd number of backslashes escapes the quote, or the first byte of the next chunk.
            escapes = (end - before) % 2 == 1
            if quote < 0:
                self._escaped = escapes
                return end
            at = quote + 1
            if not escapes:
                self._in_string = False
                return at

    def _hold(self, part: bytes) -> None:
        """Keep ``part`` of the current element, unless the element is too large."""
        self._size += len(part)
        if self._size <= self._max_bytes:
            self._held.append(part)
        else:
            self._held = []

    def _end(self, part: bytes, *, last: bool) -> Iterator[bytes | int]:
        """Yield the element that ends with ``part``; ``last`` is True at the end of the array."""
        self._hold(part)
        size, element = self._size, b"".join(self._held).strip()
        self._held, self._size, self.ended = [], 0, last
        if size > self._max_bytes:
            self._count += 1
            yield size
        elif element:
            self._count += 1
            yield element
        elif not last or self._count:
            raise self.error("an element is missing")
