"""A storage service on the loopback: a folder as a bucket, each answer late."""

from collections.abc import Iterator
import contextlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import os
from pathlib import Path
import re
import threading
import time
from urllib.parse import unquote, urlparse


class Server(ThreadingHTTPServer):
    """Serves ``folder`` as every bucket; each answer takes ``seconds``, and is ``status``."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, seconds: float, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.seconds, self.status = folder, seconds, status
        self.requests = 0

    def handle_error(self, *_: object) -> None:
        """A client that has what it needs goes away."""


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests += 1
        time.sleep(self.server.seconds)
        name = unquote(urlparse(self.path).path).split("/o/")[-1]
        file = self.server.folder / name
        if self.server.status != 200 or not file.is_file():
            self.send_response(self.server.status if self.server.status != 200 else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = file.stat().st_size
        start, end = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"]).groups()
        first = int(start) if start else max(size - int(end), 0)
        last = min(int(end), size - 1) if start and end else size - 1
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("x-goog-generation", "1")
        self.end_headers()
        with file.open("rb") as opened:
            opened.seek(first)
            for at in range(first, last + 1, 1 << 16):
                self.wfile.write(opened.read(min(1 << 16, last + 1 - at)))


@contextlib.contextmanager
def storage(folder: Path, seconds: float, status: int = 200) -> Iterator[Server]:
    """ArrayRecord's client takes this service for ``gs://``'s."""
    with Server(folder, seconds, status) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ["CLOUD_STORAGE_EMULATOR_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
        try:
            yield server
        finally:
            del os.environ["CLOUD_STORAGE_EMULATOR_ENDPOINT"]
            server.shutdown()
