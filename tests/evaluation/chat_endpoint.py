"""A local chat completions endpoint whose replies are defined by a test."""

from collections.abc import Callable, Iterator
import contextlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import threading


class Endpoint(ThreadingHTTPServer):
    """A server that answers request ``number`` with ``reply(body, number)``.

    The reply is the text of a completion, or a tuple (status, headers, body).
    """

    daemon_threads = True

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.asked, self.keys, self.lock = reply, [], [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        endpoint = self.server
        assert isinstance(endpoint, Endpoint)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with endpoint.lock:
            endpoint.asked.append(body["messages"][1]["content"])
            endpoint.keys.append(self.headers.get("Authorization"))
            number = len(endpoint.asked)
        reply = endpoint.reply(body, number)
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
    """Run an endpoint in a thread until the context ends."""
    with Endpoint(reply) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
