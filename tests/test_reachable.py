"""A remote path that is denied or silent is an error, soon; one that is merely empty is none."""

import pytest

from llama_cpt import reachable
from llama_cpt.errors import UserError
from llama_cpt.reachable import require_reachable
from tests.storage_server import bucket

__all__ = ["bucket"]


def test_local_and_absent(bucket, tmp_path):
    require_reachable(str(tmp_path / "absent"))
    require_reachable("gs://bucket/absent/*.jsonl")


def test_denied(bucket):
    bucket.status = 403
    with pytest.raises(UserError, match=r"gs://bucket/x: cannot be read \(Forbidden: \S+\); "):
        require_reachable("gs://bucket/x")


def test_silent(bucket, monkeypatch):
    bucket.seconds = 3
    monkeypatch.setattr(reachable, "ANSWER_SECONDS", 0.1)
    with pytest.raises(UserError, match="gs://bucket/x: no answer"):
        require_reachable("gs://bucket/x")
