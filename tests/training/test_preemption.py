"""A preemption notice stops a run like SIGTERM; other answers of the server have no effect."""

from http.server import BaseHTTPRequestHandler, HTTPServer
import threading
import time

import pytest

from llama_cpt.training import stop
from llama_cpt.training.stop import METADATA_HOST, Outcome, PreemptionWatcher, StopSignals


@pytest.fixture
def server(monkeypatch):
    """A local metadata server, as (its replies, the paths of the requests so far).

    The last reply is repeated forever. Every reply has a different ``ETag``. A reply with status 0
    is not valid HTTP.
    """
    replies: list[tuple[int, bytes]] = []
    requests: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self):  # noqa: N802 - http.server's name
            assert self.headers["Metadata-Flavor"] == "Google"
            requests.append(self.path)
            status, text = replies.pop(0) if len(replies) > 1 else replies[0]
            if not status:
                self.wfile.write(text)
                return
            self.send_response(status)
            self.send_header("ETag", f"tag{len(requests)}")
            self.end_headers()
            self.wfile.write(text)

    http = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    monkeypatch.setenv(METADATA_HOST, f"127.0.0.1:{http.server_port}")
    # The watcher must not use a proxy.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    yield replies, requests
    http.shutdown()
    http.server_close()


def outcome_within(seconds: float) -> Outcome:
    with StopSignals() as signals, PreemptionWatcher():
        until = time.monotonic() + seconds
        while signals.outcome is Outcome.FINISHED and time.monotonic() < until:
            time.sleep(0.01)
        return signals.outcome


def test_preemption_notice_is_a_sigterm(server, caplog):
    replies, requests = server
    replies += [(200, b"FALSE"), (200, b"FALSE"), (200, b"TRUE\n")]
    assert outcome_within(20) is Outcome.PREEMPTED
    assert [path.rsplit("=", 1)[1] for path in requests] == ["0", "tag1", "tag2"]
    assert "/computeMetadata/v1/instance/preempted?wait_for_change=true" in requests[0]
    assert "preemption notice" in caplog.text


def test_server_without_notices_is_asked_once(server):
    replies, requests = server
    replies += [(404, b"no such")]
    assert outcome_within(0.5) is Outcome.FINISHED
    assert len(requests) == 1


def test_failing_server_is_asked_again(server, monkeypatch):
    replies, _ = server
    monkeypatch.setattr(stop, "_RETRY_SECONDS", 0.01)
    replies += [(503, b"later"), (429, b"too often"), (0, b"no HTTP\r\n"), (200, b"TRUE")]
    assert outcome_within(20) is Outcome.PREEMPTED


def test_no_request_without_tpu_chips(monkeypatch):
    monkeypatch.delenv(METADATA_HOST, raising=False)
    before = threading.active_count()
    with PreemptionWatcher():
        assert threading.active_count() == before
