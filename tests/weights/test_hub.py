"""Hub names are resolved to folders, tested with a local server that imitates the hub."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
from pathlib import Path
import subprocess
import sys
import threading

import pytest

from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.hub import resolve

COMMIT = "0" * 40
FILES = {
    "config.json": b"{}",
    "model-00001-of-00001.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "LICENSE.txt": b"terms",
    "USE_POLICY.md": b"policy",
    "pytorch_model.bin": b"pickle",
    "original/consolidated.00.pth": b"pickle",
}
REFUSED = {"gated": (403, "GatedRepo"), "absent": (404, "RepoNotFound"), "busy": (503, "")}
# The hub's address is read when the library is imported.
CALLS = """
import sys
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.hub import resolve
for name in sys.argv[1:]:
    try:
        print(resolve(name.removesuffix(":light"), weights=not name.endswith(":light")))
    except UserError as error:
        print(error.status, error)
"""


class Hub(BaseHTTPRequestHandler):
    def respond(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        name = parts[3] if parts[0] == "api" else parts[1]
        status, body, headers = 200, b"", {}
        if name in REFUSED:
            status, headers["X-Error-Code"] = REFUSED[name]
        elif "tree" in parts:
            body = json.dumps(
                [{"type": "file", "path": f, "size": len(b), "oid": "a"} for f, b in FILES.items()]
            ).encode()
        elif parts[0] == "api":
            siblings = [{"rfilename": file} for file in FILES]
            body = json.dumps({"id": "org/model", "sha": COMMIT, "siblings": siblings}).encode()
        else:
            file = "/".join(parts[4:])
            body = FILES[file]
            headers = {"ETag": f'"{file}"', "X-Repo-Commit": COMMIT}
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.respond()

    def do_HEAD(self) -> None:
        self.respond()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("localhost", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def call(endpoint: str, home: Path, *names: str) -> list[str]:
    environment = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", CALLS, *names],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        cwd=home,
    )
    return done.stdout.decode().splitlines()


def test_hub_names_are_downloaded(hub, tmp_path):
    light, whole, gated, absent, busy = call(
        hub, tmp_path, "org/model:light", "org/model", "org/gated", "org/absent", "org/busy"
    )
    assert light == whole
    pickles = {file for file in FILES if file.endswith((".bin", ".pth"))}
    found = {p.name: p.read_bytes() for p in Path(whole).rglob("*") if p.is_file()}
    assert found == {file: FILES[file] for file in FILES.keys() - pickles}
    assert "https://huggingface.co/org/gated" in gated and "hf auth login" in gated
    assert "org/absent" in absent and "hf auth login" in absent
    # Only a busy hub is a transient error, after which a restart can succeed.
    assert busy.startswith("75 ") and gated.startswith("78 ") and absent.startswith("78 ")


def test_download_without_weights(hub, tmp_path):
    [folder] = call(hub, tmp_path, "org/model:light")
    assert not list(Path(folder).glob("*.safetensors")) and (Path(folder) / "LICENSE.txt").exists()


def test_no_network(tmp_path):
    (tmp_path / "weights" / "smollm2").mkdir(parents=True)
    names = "org/model", "weights/smollm", "weights/other"
    absent, similar, other = call("http://localhost:9", tmp_path, *names)
    assert absent.startswith("75 org/model: no such folder here, and the hub cannot be reached")
    # The folder ``weights`` exists, so the name is a wrong path, for which no retry helps.
    assert similar.startswith("78 weights/smollm: no such folder")
    assert similar.endswith("did you mean weights/smollm2?")
    assert other.startswith("78 ") and other.endswith("correct the path.")


def test_folders(tmp_path):
    assert resolve(str(tmp_path)) == str(tmp_path)
    for source in ("no/such/folder", "/no/folder", "folder"):
        with pytest.raises(UserError, match="no such folder"):
            resolve(source)
