"""Tests of the classification of errors as transient or permanent."""

import errno
import os

import aiohttp
from gcsfs.retry import HttpError
import pytest

from llama_cpt.runtime.retry import is_permanent, is_transient


def system(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    "error",
    [
        system(errno.EIO),
        TimeoutError(),
        HttpError({"code": 503, "message": "try again"}),
        HttpError({"code": "429", "message": "too many"}),
        aiohttp.ServerDisconnectedError(),
    ],
)
def test_transient_errors(error):
    assert is_transient(error) and not is_permanent(error)


@pytest.mark.parametrize(
    "error",
    [
        system(errno.ENOSPC),
        FileNotFoundError("b/bucket/o/run"),
        OSError("Forbidden: https://storage"),
        HttpError({"code": 401, "message": "Invalid"}),
        ValueError("PERMISSION_DENIED: the service account may not"),
    ],
)
def test_permanent_errors(error):
    assert is_permanent(error) and not is_transient(error)


def test_a_bug_is_not_a_storage_error():
    assert not is_transient(KeyError("w"))
