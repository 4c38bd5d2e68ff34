"""Requests to a judge endpoint: the deadline, retries of transient errors, and the key."""

import contextlib
import json
import socketserver
import threading
import time

import pytest

from llama_cpt.data.chat.conversations import Message
from llama_cpt.evaluation.judge import judges
from llama_cpt.evaluation.judge.judges import EndpointJudge
from llama_cpt.evaluation.judge.verdicts import BlindedPair, InvalidReplyError
from llama_cpt.runtime.errors import UsageError, UserError
from tests.evaluation.chat_endpoint import serving

KEY = "sk-a-secret-that-nobody-may-see"
SHOWN = BlindedPair((Message("user", "Who?"),), "I.", "You.")
OK = b"HTTP/1.1 200 OK\r\n"
BODY = json.dumps({"choices": [{"message": {"content": "VERDICT: A"}}]}).encode()
WHOLE = OK + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(judges, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(judges, "ATTEMPTS", 2)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@contextlib.contextmanager
def sending(*replies):
    """Run a server that sends the next of ``replies``, bytes or an iterator, per connection."""
    left = iter(replies)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1 << 16)
            with contextlib.suppress(OSError):
                reply = next(left)
                for part in [reply] if isinstance(reply, bytes) else reply:
                    self.request.sendall(part)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


def dripping(begun, drop):
    """Yield bytes so often that the timeout of the socket never expires."""
    yield begun
    for _ in range(500):
        time.sleep(0.02)
        yield drop


@pytest.mark.parametrize(
    ("begun", "drop", "message"),
    [
        (b"", b"H", "timed out"),
        (OK, b"X", "timed out"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", "timed out"),
        (OK + b"\r\n", b" ", "timed out"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5;", b"x", "timed out"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 9999\r\n\r\n", b"x", "HTTP 500"),
    ],
    ids=["status", "headers", "continue", "body", "chunk", "error"],
)
def test_timeout_covers_replies_that_arrive_slowly(begun, drop, message):
    start = time.monotonic()
    with sending(*(dripping(begun, drop) for _ in range(2))) as url:
        with pytest.raises(UserError, match=rf"no reply after 2 attempts \({message}\)"):
            EndpointJudge(url, "j", 0.1).rule(SHOWN)
    assert time.monotonic() - start < 8


def test_endpoint_that_does_not_reply_times_out():
    with serving(lambda body, number: time.sleep(0.3) or "VERDICT: A") as server:
        with pytest.raises(UserError, match="timed out"):
            EndpointJudge(server.url, "j", 0.1).rule(SHOWN)


@pytest.mark.parametrize(
    "broken",
    [
        WHOLE[:-5],
        OK + b"Transfer-Encoding: chunked\r\n\r\n20\r\n" + BODY[:20],
    ],
    ids=["length", "chunk"],
)
def test_incomplete_reply_is_retried(broken):
    with sending(broken, WHOLE) as url:
        assert EndpointJudge(url, "j", 20.0).rule(SHOWN).choice == "a"


@pytest.mark.parametrize(
    ("content", "verdict"),
    [
        ("Both are kind.\n**Verdict: B**", "b"),
        ("VERDICT:\nTIE\n\nThank you.", "tie"),
        ("The better one is\nA\nor not.\nVERDICT: A or B", None),
        ("VERDICT: A\n1\n2\n3", None),
        ("\n" * 16_000 + "x", None),
    ],
)
def test_verdict_is_parsed_from_the_last_lines(content, verdict):
    start = time.monotonic()
    with serving(lambda body, number: content) as server:
        judge = EndpointJudge(server.url, "j", 20.0)
        if verdict is None:
            with pytest.raises(InvalidReplyError):
                judge.rule(SHOWN)
        else:
            assert judge.rule(SHOWN).choice == verdict
    assert time.monotonic() - start < 8


def test_temperature_is_dropped_if_the_model_rejects_it():
    def reply(body, number):
        if "temperature" in body:
            return 400, {}, b'{"error": "temperature is not supported"}'
        return "B"

    with serving(reply) as server:
        judge = EndpointJudge(server.url, "j", 20.0)
        assert [judge.rule(SHOWN).choice for _ in range(2)] == ["b", "b"]
        assert len(server.asked) == 3


def test_key_is_not_sent_to_a_redirect():
    with serving(lambda body, number: "VERDICT: A") as elsewhere:
        there = {"Location": elsewhere.url + "/chat/completions"}
        with serving(lambda body, number: (307, there, b"")) as server:
            with pytest.raises(UserError, match="HTTP 307"):
                EndpointJudge(server.url, "j", 20.0).rule(SHOWN)
        assert server.keys == [f"Bearer {KEY}"] and not elsewhere.asked


@pytest.mark.parametrize(
    "escaped",
    [
        "".join(f"\\u{ord(c):04x}" for c in KEY),
        "".join(f"\\\\u{ord(c):04X}" for c in KEY),
        "".join(f"%{ord(c):02x}" for c in KEY),
        "".join(f"%25{ord(c):02X}" for c in KEY),
        "".join(f"&#{ord(c)};" for c in KEY),
        KEY[:3] + "".join(f"\\x{ord(c):02x}" for c in KEY[3:]),
        KEY.replace("-", "\\-"),
    ],
)
def test_escaped_key_is_not_shown(escaped):
    body = f'{{"error": "no {escaped} and {KEY}"}}'.encode()
    with serving(lambda body_, number: (404, {}, body)) as server:
        with pytest.raises(UserError, match=r"no \[key\] and \[key\]") as caught:
            EndpointJudge(server.url, "j", 20.0).rule(SHOWN)
    assert KEY not in str(caught.value) and escaped not in str(caught.value)


@pytest.mark.parametrize("url", ["http://[::1", "http://a:b", "http://a:99999", "http://", "x"])
def test_invalid_url_is_a_usage_error(url):
    with pytest.raises(UsageError, match="--judge must be a URL such as"):
        EndpointJudge(url, "j", 20.0)


@pytest.mark.parametrize(
    ("status", "message"), [(401, "set OPENAI_API_KEY"), (404, "check the URL and model")]
)
def test_permanent_error_is_raised_at_once(status, message):
    with serving(lambda body, number: (status, {}, f"no {KEY}".encode())) as server:
        with pytest.raises(UserError, match=rf"HTTP {status} \(no \[key\]\); {message}"):
            EndpointJudge(server.url, "j", 20.0).rule(SHOWN)
        assert len(server.asked) == 1
