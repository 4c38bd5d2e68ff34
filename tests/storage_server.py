"""A local server with the API of Cloud Storage for clients of ``gs://``; objects are in memory.

Like Cloud Storage, it has no folders, and a write can require a generation of the old object.
"""

import base64
from collections.abc import Callable, Iterator, MutableMapping
import contextlib
from email.parser import BytesParser
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import os
from pathlib import Path
import re
import threading
import time
from urllib.parse import parse_qs, unquote, urlsplit

import pytest


class Server(ThreadingHTTPServer):
    """The server. All buckets contain the same objects, initially the files of ``folder``.

    The server responds after ``seconds``. If ``status`` is not 200, it is the status of every
    response. A request for which ``fails(method)`` or ``denies(method)`` is True has no effect, and
    the response has status 503 or 403.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, seconds: float, status: int) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        files = (path for path in folder.rglob("*") if path.is_file())
        self.objects: MutableMapping[str, bytes] = {
            str(path.relative_to(folder)): path.read_bytes() for path in files
        }
        self.generations = dict.fromkeys(self.objects, 1)
        self.seconds, self.status = seconds, status
        self.fails: Callable[[str], bool] = lambda method: False
        self.denies: Callable[[str], bool] = lambda method: False
        self.requests = self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def put(self, name: str, content: bytes, generation: str | None) -> bool:
        """Store an object and return True, or return False if the generation differs.

        ``generation`` 0 requires that the object does not exist; None requires nothing.
        """
        with self.lock:
            before = self.generations.get(name, 0)
            current = before if name in self.objects else 0
            if generation is not None and int(generation) != current:
                return False
            self.objects[name], self.generations[name] = content, before + 1
            return True

    def handle_error(self, *_: object) -> None:
        """Ignore clients that close the connection early."""


class Answer(BaseHTTPRequestHandler):
    """The HTTP handler of one request."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if not self.is_served():
            return
        path = urlsplit(self.path).path
        if path.endswith("/o"):
            self.answer_json(self.listed())
        elif "/o/" not in path:
            self.answer_json({"name": "bucket"})
        elif self.name not in self.server.objects:
            self.answer(404)
        elif self.query.get("alt") == "media":
            self.send_object()
        else:
            self.answer_json(self.described(self.name))

    def do_POST(self) -> None:
        content = self.content()
        if not self.is_served():
            return
        if "/batch/" in self.path:
            self.answer_batch(content)
            return
        verbs = r"/o/([^/]+)/(rewriteTo|copyTo|moveTo)(?:/b/[^/]+)?/o/([^?]+)"
        if match := re.search(verbs, self.path):
            source, target = unquote(match[1]), unquote(match[3])
            if source not in self.server.objects:
                self.answer(404)
                return
            self.server.put(target, self.server.objects[source], None)
            if match[2] == "moveTo":
                del self.server.objects[source]
            resource = self.described(target)
            rewritten = {"done": True, "resource": resource}
            self.answer_json(rewritten if match[2] == "rewriteTo" else resource)
            return
        kind, name = self.query.get("uploadType"), self.query.get("name")
        if kind == "resumable":
            name = name or json.loads(content)["name"]
            # The next request sends all of the content to this address, without uploadType.
            location = f"http://{self.headers['Host']}/upload?name={name}"
            self.answer(200, headers={"Location": location})
            return
        if kind == "multipart":
            # gcloud quotes the boundary with apostrophes.
            kind = self.headers["Content-Type"].replace("'", '"')
            head = f"Content-Type: {kind}\r\n\r\n".encode()
            message = BytesParser().parsebytes(head + content)
            parts = [part for part in message.walk() if not part.is_multipart()]
            about, content = (part.get_payload(decode=True) for part in parts)
            assert isinstance(about, bytes) and isinstance(content, bytes)
            name = json.loads(about)["name"]
        assert name is not None, self.path
        self.keep(name, content)

    def do_DELETE(self) -> None:
        if self.is_served():
            found = self.server.objects.pop(self.name, None)
            self.answer(204 if found is not None else 404)

    def is_served(self) -> bool:
        """Wait for ``seconds``. If the request must fail, send the error response and return
        False."""
        with self.server.lock:
            self.server.requests += 1
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        time.sleep(self.server.seconds)
        with self.server.lock:
            self.server.at_once -= 1
        if self.server.status != 200:
            self.answer(self.server.status)
        elif self.server.fails(self.command):
            self.answer(503)
        elif self.server.denies(self.command):
            self.answer(403)
        else:
            return True
        return False

    @property
    def query(self) -> dict[str, str]:
        return {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}

    @property
    def name(self) -> str:
        return unquote(urlsplit(self.path).path).split("/o/", 1)[-1]

    def content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def listed(self) -> dict:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        names = [name for name in sorted(list(self.server.objects)) if name.startswith(prefix)]
        folders = set()
        if delimiter:
            rests = {name: name[len(prefix) :] for name in names}
            below = {name: rest for name, rest in rests.items() if delimiter in rest}
            folders = {prefix + rest.split(delimiter)[0] + delimiter for rest in below.values()}
            names = [name for name in names if name not in below]
        return {"items": [self.described(name) for name in names], "prefixes": sorted(folders)}

    def described(self, name: str) -> dict:
        content, moment = self.server.objects[name], "2026-01-01T00:00:00.000Z"
        return {
            "name": name,
            "bucket": "bucket",
            "size": str(len(content)),
            "generation": str(self.server.generations[name]),
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "updated": moment,
            "timeCreated": moment,
        }

    def send_object(self) -> None:
        content = self.server.objects[self.name]
        first, end, size = 0, len(content), len(content)
        headers = {"x-goog-generation": str(self.server.generations[self.name])}
        requested = self.headers.get("Range")
        if requested:
            found = re.fullmatch(r"bytes=(\d*)-(\d*)", requested)
            assert found, requested
            start, last = found.groups()
            first = int(start) if start else max(size - int(last), 0)
            end = min(int(last) + 1, size) if start and last else size
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
        self.answer(206 if requested else 200, content[first:end], headers)

    def answer_batch(self, content: bytes) -> None:
        parts = []
        for number, path in enumerate(re.findall(rb"DELETE (\S+)", content), 1):
            name = unquote(path.decode()).split("/o/", 1)[1]
            self.server.objects.pop(name, None)
            parts.append(
                "--part\r\nContent-Type: application/http\r\n"
                f"Content-ID: <response-{number}>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n\r\n"
            )
        body = "".join([*parts, "--part--"]).encode()
        self.answer(200, body, {"Content-Type": "multipart/mixed; boundary=part"})

    def keep(self, name: str, content: bytes) -> None:
        if self.server.put(name, content, self.query.get("ifGenerationMatch")):
            self.answer_json(self.described(name))
        else:
            self.answer(412)

    def answer_json(self, values: dict) -> None:
        self.answer(200, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, content: bytes = b"", headers: dict | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def storage(folder: Path, seconds: float = 0.0, status: int = 200) -> Iterator[Server]:
    """Context manager in which ``gs://`` of new clients and new processes is a local server."""
    with Server(folder, seconds, status) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        before = dict(os.environ)
        os.environ |= {
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
        }
        try:
            yield server
        finally:
            os.environ.clear()
            os.environ |= before
            server.shutdown()


@pytest.fixture
def bucket(tmp_path_factory) -> Iterator[Server]:
    """A local server for ``gs://`` with the empty bucket ``gs://bucket``."""
    with storage(tmp_path_factory.mktemp("empty")) as server:
        yield server
