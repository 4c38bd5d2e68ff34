"""A ``gs://`` bucket in memory."""

import sys

from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
import pytest


class Bucket(MemoryFileSystem):
    """What gcsfs would be, without a network; nothing survives a test."""

    protocol = "gs"
    store = {}
    pseudo_dirs = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("gs://").strip("/")


@pytest.fixture
def bucket(monkeypatch):
    for name in ("gs", "gcs"):
        monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, name, Bucket)
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    forget = epath.backend.fsspec_backend._get_filesystem.cache_clear
    forget()
    yield Bucket()
    forget()
