"""Local servers with the APIs that ``gcloud`` calls for a queued resource, its hosts and a bucket.

Their state is in the folder of a ``Cloud``, which ``fake_cloud.sh`` uses too.
"""

from collections import defaultdict
from collections.abc import Iterator, MutableMapping
import contextlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
from pathlib import Path
import shutil
import threading
from urllib.parse import urlsplit

from tests.launch.cloud import Cloud
from tests.storage_server import storage

ENDPOINT = "CLOUDSDK_API_ENDPOINT_OVERRIDES_"


class FolderObjects(MutableMapping[str, bytes]):
    """A mapping from names to contents of a bucket's objects, stored as files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __iter__(self) -> Iterator[str]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return (str(path.relative_to(self.folder)) for path in files)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return (self.folder / str(name)).is_file()

    def __getitem__(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def __setitem__(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def __delitem__(self, name: str) -> None:
        (self.folder / name).unlink()


class TpuService(ThreadingHTTPServer):
    """A server for queued resources and nodes, and for the parts of Compute Engine that ssh
    needs."""

    daemon_threads = True

    def __init__(self, cloud: Cloud) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.place, self.power_off = cloud.place, cloud.power_off
        self.workers = cloud.workers
        self.asked: list[dict] = []
        """Accepted requests for queued resources."""
        self.deleted = 0

    @property
    def hosts(self) -> Path:
        return self.place / "hosts"

    def take(self, identity: str, request: dict) -> None:
        """Accept a request for a queued resource and create its hosts."""
        self.asked.append(request)
        (spec,) = request["tpu"]["nodeSpec"]
        slices = spec.get("multisliceParams", {})
        prefix = slices.get("nodeIdPrefix", identity)
        count = slices.get("nodeCount")
        nodes = [f"{prefix}-{number}" for number in range(count)] if count else [spec["nodeId"]]
        for number, node in enumerate(nodes):
            for worker in range(self.workers):
                host = self.hosts / node / str(worker)
                host.mkdir(parents=True)
                (host / "address").write_text(f"10.0.{number}.{worker}\n")
        (self.place / "request").write_text("WAITING_FOR_RESOURCES,PROVISIONING,ACTIVE")

    def delete(self) -> None:
        """Delete the queued resource and all of its hosts."""
        self.deleted += 1
        self.power_off()
        shutil.rmtree(self.hosts)
        (self.place / "request").unlink()

    def requests(self, parent: str) -> list[dict]:
        """Return a list of the queued resource, or [] without one. Each call advances its state."""
        file = self.place / "request"
        if not file.exists():
            return []
        state, _, later = file.read_text().partition(",")
        if later:
            file.write_text(later)
        spec = [{"nodeId": node, "parent": parent} for node in self.node_names()]
        name = f"{parent}/queuedResources/cpt"
        return [{"name": name, "state": {"state": state}, "tpu": {"nodeSpec": spec}}]

    def node_names(self) -> list[str]:
        return sorted(path.parent.name for path in self.hosts.glob("*/0"))

    def node(self, parent: str, node: str) -> dict:
        """Return the description of a node with the addresses of its hosts, ordered by worker."""
        hosts = sorted((self.hosts / node).iterdir())
        addresses = [(host / "address").read_text().strip() for host in hosts]
        ends = [{"ipAddress": ip, "accessConfig": {"externalIp": ip}} for ip in addresses]
        name = f"{parent}/nodes/{node}"
        return {"name": name, "state": "READY", "id": "1", "networkEndpoints": ends}


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TpuService

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815  (Names of the base class.)

    def answer(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = self.response(json.loads(content or b"{}"))
        body = json.dumps(found if found is not None else {"error": {"code": 404}}).encode()
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def response(self, sent: dict) -> dict | None:
        """Return the JSON response to a request, or None for status 404."""
        url = urlsplit(self.path)
        parent, _, thing = url.path.partition("/v2/")[2].partition("/locations/")
        zone, _, thing = thing.partition("/")
        parent = f"{parent}/locations/{zone}"
        match self.command, thing.partition("/")[::2]:
            case "POST", ("queuedResources", ""):
                self.server.take(url.query.partition("queuedResourceId=")[2], sent)
            case "DELETE", ("queuedResources", "cpt"):
                self.server.delete()
            case "GET", ("queuedResources", ""):
                return {"queuedResources": self.server.requests(parent)}
            case "GET", ("queuedResources", "cpt"):
                return next(iter(self.server.requests(parent)), None)
            case "GET", ("nodes", ""):
                nodes = self.server.node_names()
                return {"nodes": [self.server.node(parent, node) for node in nodes]}
            case "GET", ("nodes", name):
                return self.server.node(parent, name)
            case "POST", ("nodes", call) if call.endswith(":getGuestAttributes"):
                keys = {"items": [{"namespace": "hostkeys", "key": "ssh-rsa", "value": "AAAA"}]}
                guest = {"queryPath": "hostkeys/", "queryValue": keys}
                return {"guestAttributes": self.server.workers * [guest]}
            case "GET", ("", ""):  # A request to Compute Engine.
                return {"name": "a-project", "commonInstanceMetadata": {"items": []}}
        node = next(
            iter(self.server.node_names()), None
        )  # Any node, because gcloud only checks that it exists.
        done = {"name": f"{parent}/nodes/{node}"}
        return {"name": f"{parent}/operations/o", "done": True, "response": done}


@contextlib.contextmanager
def google_cloud(cloud: Cloud) -> Iterator[TpuService]:
    """Context manager in which ``cloud`` runs the real ``gcloud`` with these local servers."""
    bucket = cloud.place / "bucket"
    with storage(bucket) as stored, TpuService(cloud) as service:
        stored.objects = FolderObjects(bucket)
        stored.generations = defaultdict(lambda: 1)
        threading.Thread(target=service.serve_forever, args=(0.02,), daemon=True).start()
        place = f"http://127.0.0.1:{service.server_port}/"
        token = cloud.place / "token"
        token.write_text("a-token\n")
        cloud.environment.update(
            {
                f"{ENDPOINT}TPU": place,
                f"{ENDPOINT}COMPUTE": f"{place}compute/v1/",
                f"{ENDPOINT}STORAGE": f"http://127.0.0.1:{stored.server_port}/storage/v1/",
                "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(token),
                "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
                "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
            }
        )
        yield service
        service.shutdown()
