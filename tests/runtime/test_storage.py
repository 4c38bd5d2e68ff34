"""Tests that inaccessible and unanswered remote paths raise errors, and missing paths do not."""

import errno
import os

import pytest

from llama_cpt.runtime import storage
from llama_cpt.runtime.errors import PREEMPTED, USER_ERROR, UserError
from llama_cpt.runtime.output_folder import check_writable
from llama_cpt.runtime.storage import check_reachable
from llama_cpt.weights.hub import resolve
from tests.storage_server import bucket

__all__ = ["bucket"]


def test_missing_paths_are_reachable(bucket, tmp_path):
    check_reachable(str(tmp_path / "absent"))
    check_reachable("gs://bucket/absent/*.jsonl", pattern=True)


def test_broken_mount_is_transient(monkeypatch):
    """A broken mount gives this error for every path in it; an invalid name is only missing."""

    def broken(path, **_):
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), path)

    check_reachable("x" * 300)
    monkeypatch.setattr(storage.os, "stat", broken)
    with pytest.raises(UserError, match="weights/8b: cannot be read now .*not connected") as caught:
        resolve("weights/8b")
    assert caught.value.status == PREEMPTED


def test_denied_path_is_an_error(bucket):
    bucket.status = 403
    with pytest.raises(UserError, match=r"gs://bucket/x: cannot be read \(Forbidden: \S+\); "):
        check_reachable("gs://bucket/x")


@pytest.mark.parametrize(("seconds", "status"), [(3, 200), (0, 503)])
def test_unanswered_request_is_transient(seconds, status, bucket, monkeypatch):
    bucket.seconds, bucket.status = seconds, status
    monkeypatch.setattr(storage, "TIMEOUT_SECONDS", 0.3)
    with pytest.raises(UserError, match="gs://bucket/x: no answer") as caught:
        check_reachable("gs://bucket/x")
    assert caught.value.status == PREEMPTED


def test_check_writable_leaves_no_object(bucket):
    check_writable("gs://bucket/x")
    assert not bucket.objects
    bucket.denies = lambda method: method != "GET"
    check_reachable("gs://bucket/x")
    with pytest.raises(UserError, match=r"gs://bucket/x: cannot be written \(Forbidden") as caught:
        check_writable("gs://bucket/x")
    assert caught.value.status == USER_ERROR
