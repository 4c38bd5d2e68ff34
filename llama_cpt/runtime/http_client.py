"""A client of an HTTP endpoint, with bounds on the time and the size of each reply.

The API key is read from the environment and sent in a request header. The key is never written to
errors, and it is never sent to the target of a redirect.
"""

from collections.abc import Generator
import contextlib
from dataclasses import dataclass, field
from email.message import Message
import html
from http.client import HTTPException, HTTPResponse
import json
import os
import re
import socket
import threading
from typing import Any
import urllib.error
import urllib.parse
import urllib.request

from llama_cpt.runtime.errors import UsageError, UserError

KEY_VARIABLE = "OPENAI_API_KEY"
LARGEST_REPLY = 1 << 20
"""Maximum size of a reply in bytes."""
_ESCAPED = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2}))")
_ESCAPE_LEVELS = 3


class StatusError(Exception):
    """The error for a reply with an HTTP status other than success.

    ``text`` is the reply without the API key, and the message is its beginning on one line.
    """

    def __init__(self, code: int, text: str, headers: Message) -> None:
        super().__init__(" ".join(text.split())[:200])
        self.code, self.text, self.headers = code, text, headers


class NoReplyError(Exception):
    """The error for a request that received no complete reply before its deadline."""


class TooLargeError(Exception):
    """The error for a reply that is larger than ``LARGEST_REPLY``."""


@dataclass
class HttpClient:
    """A thread-safe client of the endpoint at ``url``, without retries."""

    url: str
    option: str
    """Name of the command-line argument that contains the URL, for messages."""
    alternative: str = ""
    """Another valid value of the argument, for messages."""
    key: str = field(default_factory=lambda: os.environ.get(KEY_VARIABLE, ""), repr=False)

    def __post_init__(self) -> None:
        """Raise UserError if the URL or the key is invalid.

        The URL must not contain a secret, and the key must be printable ASCII.
        """
        try:
            parts = urllib.parse.urlsplit(self.url)
            _ = parts.port
        except ValueError:
            # The URL has an unmatched bracket, or a port that is not a number up to 65535.
            parts = urllib.parse.urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname or not self.url.isascii():
            other = f", or {self.alternative}" if self.alternative else ""
            raise UsageError(
                f"{self.option} must be a URL such as http://localhost:8000/v1{other}."
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserError(
                f"{self.option}: the URL of {parts.hostname} has a user, a password, a query or a "
                f"fragment; set the key in the environment variable {KEY_VARIABLE}."
            )
        if not re.fullmatch(r"[\x21-\x7e]*", self.key):
            raise UserError(f"{KEY_VARIABLE} must be printable ASCII without spaces.")
        self.url = self.url.rstrip("/")

    def request(self, path: str, body: dict[str, Any] | None, seconds: float) -> bytes:
        """Return the reply to ``POST path`` with ``body`` as JSON, or to ``GET path`` without it.

        Raises StatusError, NoReplyError or TooLargeError if no usable reply arrives within
        ``seconds``.
        """
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        content = None if body is None else json.dumps(body).encode()
        request = _Request(f"{self.url}{path}", content, headers)
        with request.within(seconds):
            try:
                return _read(request)
            except urllib.error.HTTPError as error:
                raise StatusError(error.code, self._text(error), error.headers) from None
            except (OSError, HTTPException, UnicodeError) as error:
                # URLError and timeouts are OSErrors.
                message = str(getattr(error, "reason", error)) or repr(error)
                message = "timed out" if request.expired else self.redacted(message)
                raise NoReplyError(message) from None

    def _text(self, error: urllib.error.HTTPError) -> str:
        with error:
            try:
                message = error.read(LARGEST_REPLY).decode(errors="replace")
            except (OSError, HTTPException):
                message = ""
        return self.redacted(message)

    def redacted(self, text: str) -> str:
        """Return ``text`` without the key. A text with an escaped key is decoded first."""
        if not self.key:
            return text
        text = text.replace(self.key, "[key]")
        decoded = text
        for _ in range(_ESCAPE_LEVELS):
            decoded = _decoded(decoded).replace(self.key, "[key]")
        return decoded if decoded.count("[key]") > text.count("[key]") else text


def _decoded(text: str) -> str:
    """Return ``text`` without the escapes of JSON, URLs and HTML."""
    text = html.unescape(urllib.parse.unquote(text))
    text = _ESCAPED.sub(lambda found: chr(int(found[1] or found[2], 16)), text)
    return re.sub(r"\\(.)", r"\1", text)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A handler that rejects redirects, because urllib would send the API key to the target."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Request(urllib.request.Request):
    """A request that shuts its connection down at a deadline.

    The timeout of a socket restarts with every received byte. An endpoint that sends its reply byte
    by byte would therefore never time out.
    """

    expired = False
    _socket: socket.socket | None = None

    @contextlib.contextmanager
    def within(self, seconds: float) -> Generator[None]:
        """Shut the connection down if the ``with`` block takes more than ``seconds``."""
        self.seconds = seconds
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def response(self, connection: socket.socket, *args: Any, **kwargs: Any) -> HTTPResponse:
        """Return the response on ``connection``, which is shut down at the deadline."""
        self._socket = connection
        # The deadline can pass before the connection exists.
        if self.expired:
            self._expire()
        return HTTPResponse(connection, *args, **kwargs)

    def _expire(self) -> None:
        self.expired = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # Call the method of the base class, because SSLSocket.shutdown waits for the peer.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class _Watched(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """A handler that passes each new connection to the ``_Request`` that needs the connection."""

    def do_open(self, http_class: Any, req: _Request, **settings: Any) -> HTTPResponse:
        def connect(*arguments: Any, **keywords: Any) -> Any:
            connection = http_class(*arguments, **keywords)
            connection.response_class = req.response
            return connection

        return super().do_open(connect, req, **settings)


_OPENER = urllib.request.build_opener(_NoRedirect, _Watched)


def _read(request: _Request) -> bytes:
    """Return the body of the reply.

    Raises ConnectionError if the body is incomplete, and TooLargeError if the body is larger than
    ``LARGEST_REPLY``.
    """
    with _OPENER.open(request, timeout=request.seconds) as response:
        body = response.read(LARGEST_REPLY + 1)
    if len(body) > LARGEST_REPLY:
        raise TooLargeError(f"more than {LARGEST_REPLY:,} bytes")
    # HTTPResponse.length is the number of bytes of Content-Length that were not received.
    if request.expired or response.length:
        raise ConnectionError("the reply is incomplete")
    return body
