"""A remote path that is denied or silent is an error, soon; one that is merely empty is none."""

import time

import pytest

from llama_cpt import reachable
from llama_cpt.errors import UserError
from llama_cpt.reachable import require_reachable
from tests.bucket import Bucket, bucket

__all__ = ["bucket"]


def test_local_and_absent(bucket, tmp_path):
    require_reachable(str(tmp_path / "absent"))
    require_reachable("gs://bucket/absent/*.jsonl")


def test_denied(bucket, monkeypatch):
    def denied(*_, **__):
        raise OSError("Forbidden: https://storage\nthe whole page")

    monkeypatch.setattr(Bucket, "info", denied)
    with pytest.raises(UserError, match=r"gs://bucket/x: cannot be read \(Forbidden: \S+\); "):
        require_reachable("gs://bucket/x")


def test_silent(bucket, monkeypatch):
    monkeypatch.setattr(Bucket, "info", lambda *_, **__: time.sleep(60))
    monkeypatch.setattr(reachable, "ANSWER_SECONDS", 0.1)
    with pytest.raises(UserError, match="gs://bucket/x: no answer"):
        require_reachable("gs://bucket/x")
