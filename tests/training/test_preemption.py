"""Compute Engine's notice ends a run as SIGTERM does; a server without it changes nothing."""

from http.server import BaseHTTPRequestHandler, HTTPServer
import threading
import time

import pytest

from llama_cpt.training import preemption
from llama_cpt.training.preemption import METADATA_HOST, PreemptionWatcher
from llama_cpt.training.stop import Outcome, StopSignals


@pytest.fixture
def answers(monkeypatch):
    """What a metadata server answers next, the last again and again; each told its ``ETag``.

    Status 0 is an answer that is no HTTP.
    """
    told: list[tuple[int, bytes]] = []
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):  # noqa: N802 - http.server's name
            assert self.headers["Metadata-Flavor"] == "Google"
            asked.append(self.path)
            status, text = told.pop(0) if len(told) > 1 else told[0]
            if not status:
                self.wfile.write(text)
                return
            self.send_response(status)
            self.send_header("ETag", f"tag{len(asked)}")
            self.end_headers()
            self.wfile.write(text)

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(METADATA_HOST, f"127.0.0.1:{server.server_port}")
    # A proxy is for the world outside.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    yield told, asked
    server.shutdown()
    server.server_close()


def outcome_within(seconds: float) -> Outcome:
    with StopSignals() as signals, PreemptionWatcher():
        until = time.monotonic() + seconds
        while signals.outcome is Outcome.FINISHED and time.monotonic() < until:
            time.sleep(0.01)
        return signals.outcome


def test_a_notice_is_a_signal(answers, capsys):
    told, asked = answers
    told += [(200, b"FALSE"), (200, b"FALSE"), (200, b"TRUE\n")]
    assert outcome_within(20) is Outcome.PREEMPTED
    assert [path.rsplit("=", 1)[1] for path in asked] == ["0", "tag1", "tag2"]
    assert "/computeMetadata/v1/instance/preempted?wait_for_change=true" in asked[0]
    assert "preemption notice" in capsys.readouterr().err


def test_a_server_that_does_not_tell_is_asked_once(answers):
    told, asked = answers
    told += [(404, b"no such")]
    assert outcome_within(0.5) is Outcome.FINISHED
    assert len(asked) == 1


def test_a_server_in_trouble_is_asked_again(answers, monkeypatch):
    told, _ = answers
    monkeypatch.setattr(preemption, "_RETRY_SECONDS", 0.01)
    told += [(503, b"later"), (429, b"too often"), (0, b"no HTTP\r\n"), (200, b"TRUE")]
    assert outcome_within(20) is Outcome.PREEMPTED


def test_nobody_is_asked_without_chips(monkeypatch):
    monkeypatch.delenv(METADATA_HOST, raising=False)
    before = threading.active_count()
    with PreemptionWatcher():
        assert threading.active_count() == before
