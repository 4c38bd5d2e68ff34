"""Data sets on the Hugging Face hub, read from a local server that imitates the hub."""

from dataclasses import replace
import gzip
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import io
import json
import logging
import pickle
import threading
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import HfFileSystem, constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llama_cpt.config.schema import CorpusConfig
from llama_cpt.data.prepare.corpora import prepare
from llama_cpt.data.sources.documents import Document, parse_documents, read_blocks
from llama_cpt.data.sources.files import describe_changes, find_sources, with_digests
from llama_cpt.runtime.errors import PREEMPTED, USER_ERROR, UserError
from tests.data.corpus_files import prepared_files

TOKEN = "hf_secretsecret"
TEXTS = [f"document {n} of the hub" for n in range(300)]


def parquet(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), buffer, write_page_checksum=True)
    return buffer.getvalue()


class Hub(ThreadingHTTPServer):
    """A hub with one data set, ``org/texts``; ``private`` requires TOKEN."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
        self.files = {
            "zh/a.parquet": parquet(TEXTS[:100]),
            "zh/b.parquet": parquet(TEXTS[100:]),
            "lines.jsonl.gz": gzip.compress(lines.encode()),
        }
        self.private, self.status, self.file_status = False, 200, 200
        self.ranges: list[str] = []


class Answer(BaseHTTPRequestHandler):
    """The HTTP handler of one request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, hub = unquote(url.path), self.server
        allowed = not hub.private or self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if hub.status != 200:
            return self.answer(hub.status, b"")
        if "org/texts" not in path or not allowed:
            return self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        if "/tree/" in path:
            recursive = parse_qs(url.query).get("recursive") == ["true"]
            _, _, folder = path.partition("/tree/main")
            return self.answer(200, json.dumps(self.tree(folder.strip("/"), recursive)).encode())
        if path.startswith("/api/"):
            return self.answer(200, json.dumps({"id": "org/texts", "sha": "0" * 40}).encode())
        if hub.file_status != 200:
            return self.answer(hub.file_status, b"", {"X-Error-Code": "GatedRepo"})
        content = hub.files[path.partition("/resolve/main/")[2]]
        hub.ranges.append(self.headers["Range"])
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        return self.answer(206, content[first : last + 1])

    def tree(self, folder: str, recursive: bool) -> list[dict[str, object]]:
        found = {}
        for name, content in self.server.files.items():
            if folder and not name.startswith(f"{folder}/"):
                continue
            parts = name.removeprefix(f"{folder}/" if folder else "").split("/")
            parents = ["/".join(filter(None, [folder, *parts[:n]])) for n in range(1, len(parts))]
            for parent in parents if recursive else parents[:1]:
                found[parent] = {"type": "directory", "path": parent, "size": 0, "oid": "d"}
            if recursive or len(parts) == 1:
                oid = hashlib.sha1(content).hexdigest()
                found[name] = {"type": "file", "path": name, "size": len(content), "oid": oid}
        return list(found.values())

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "absent"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    HfFileSystem.clear_instance_cache()
    yield server
    HfFileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()


def corpus(path: str) -> CorpusConfig:
    return CorpusConfig("zh", f"hf://datasets/org/{path}")


def read(path: str) -> list[str]:
    blocks = read_blocks(find_sources(corpus(path)), "text", 1000)
    documents = [one for block in blocks for one in parse_documents(block, "text")]
    assert all(isinstance(one, Document) for one in documents)
    return [one.text for one in documents if isinstance(one, Document)]


def test_files_of_a_data_set(hub):
    assert read("texts/zh/*.parquet") == TEXTS
    assert read("texts/**/b.parquet") == TEXTS[100:]
    assert read("texts/lines.jsonl.gz") == TEXTS
    assert read("texts@main/zh/a.parquet") == TEXTS[:100]
    assert hub.ranges
    sources = find_sources(corpus("texts/zh/*.parquet"))
    assert sources.files == tuple(f"hf://datasets/org/texts/zh/{name}.parquet" for name in "ab")


def test_changed_file_of_equal_size_is_detected(hub):
    """The hub states no time of a change, so the digest is compared."""
    before = with_digests("zh", find_sources(corpus("texts/zh/*.parquet")).stats())
    assert all(one["digest"].startswith("blob_id:") for one in before)
    assert not hub.ranges
    content = hub.files["zh/b.parquet"]
    hub.files["zh/b.parquet"] = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    HfFileSystem.clear_instance_cache()
    now = find_sources(corpus("texts/zh/*.parquet")).stats()
    assert describe_changes(now[:1], before[:1]) is None
    changed = "source hf://datasets/org/texts/zh/b.parquet has changed"
    assert describe_changes(now, before) == changed


def test_token_is_read_from_the_environment_and_not_logged(hub, config, monkeypatch, caplog):
    hub.private = True
    sources = (corpus("texts/zh/*.parquet"),)
    config = replace(config, additional=sources, heldout=())
    with pytest.raises(UserError, match=r"repository not found.* set HF_TOKEN") as caught:
        prepare(config, 1)
    assert caught.value.status == USER_ERROR
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    HfFileSystem.clear_instance_cache()
    # The job of a Beam pipeline contains the sources.
    assert TOKEN.encode() not in pickle.dumps(find_sources(sources[0]))
    with caplog.at_level(logging.DEBUG):
        assert prepare(config, 1).rows["zh"].rows > 0
        hub.file_status = 403
        with pytest.raises(UserError, match="403.* set HF_TOKEN") as caught:
            read("texts/zh/*.parquet")
        # Another host without the token uses the rows as they were prepared.
        monkeypatch.delenv("HF_TOKEN")
        HfFileSystem.clear_instance_cache()
        assert prepare(config, 1).rows["zh"].rows > 0
    assert "The rows in " in caplog.text and " are used as they were prepared." in caplog.text
    assert TOKEN not in caplog.text and TOKEN not in str(caught.value)
    assert TOKEN not in str(prepared_files(config))


@pytest.mark.parametrize("path", ["texts/zh/*.parquet", "texts/lines.jsonl.gz"])
def test_hub_that_fails_is_unreachable(path, hub):
    find_sources(corpus(path))
    hub.file_status = 503
    with pytest.raises(UserError, match="cannot be read now.*503") as caught:
        read(path)
    assert caught.value.status == PREEMPTED and "\n" not in str(caught.value)
    hub.status = 503
    HfFileSystem.clear_instance_cache()
    with pytest.raises(UserError, match="cannot be read now.*503") as caught:
        find_sources(corpus(path))
    assert caught.value.status == PREEMPTED


def test_no_network_is_unreachable(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot be read now") as caught:
        find_sources(corpus("texts/zh/*.parquet"))
    assert caught.value.status == PREEMPTED and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("absent/*.parquet", "repository not found.* set HF_TOKEN"),
        ("texts/en/*.parquet", "no file matches hf://datasets/org/texts/en"),
        ("texts/zh/c.parquet", "no file matches hf://datasets/org/texts/zh/c.parquet"),
    ],
)
def test_absent_data_sets_and_files_are_user_errors(path, message, hub):
    with pytest.raises(UserError, match=message) as caught:
        find_sources(corpus(path))
    assert caught.value.status == USER_ERROR
