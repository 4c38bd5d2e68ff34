"""A local endpoint with replies defined by a test."""

from collections.abc import Callable, Iterator
import contextlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import threading


class Endpoint(ThreadingHTTPServer):
    """Answers as ``reply(question, number)`` says: text, or (status, headers, body)."""

    daemon_threads = True

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.asked, self.keys, self.lock = reply, [], [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body["messages"][1]["content"])
            self.server.keys.append(self.headers.get("Authorization"))
            number = len(self.server.asked)
        reply = self.server.reply(body, number)
        if isinstance(reply, str):
            choice = {"message": {"content": reply}}
            reply = 200, {}, json.dumps({"choices": [choice]}).encode()
        status, headers, content = reply
        with contextlib.suppress(OSError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            for part in [content] if isinstance(content, bytes) else content:
                self.wfile.write(part)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(reply: Callable) -> Iterator[Endpoint]:
    """It runs until the context ends."""
    with Endpoint(reply) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
