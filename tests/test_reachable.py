"""A remote path that is denied or silent is an error, soon; one that is merely empty is none."""

import pytest

from llama_cpt import reachable
from llama_cpt.errors import PREEMPTED, UserError
from llama_cpt.folders import require_writable
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


@pytest.mark.parametrize(("seconds", "status"), [(3, 200), (0, 503)])
def test_silent(seconds, status, bucket, monkeypatch):
    """It may pass: the command is to be started again."""
    bucket.seconds, bucket.status = seconds, status
    monkeypatch.setattr(reachable, "ANSWER_SECONDS", 0.3)
    with pytest.raises(UserError, match="gs://bucket/x: no answer") as caught:
        require_reachable("gs://bucket/x")
    assert caught.value.status == PREEMPTED


def test_writable(bucket):
    """Nothing stays of the try."""
    require_writable("gs://bucket/x")
    assert not bucket.objects
    bucket.denies = lambda method: method != "GET"
    require_reachable("gs://bucket/x")
    with pytest.raises(UserError, match=r"gs://bucket/x: cannot be written \(Forbidden") as caught:
        require_writable("gs://bucket/x")
    assert caught.value.status == 1
