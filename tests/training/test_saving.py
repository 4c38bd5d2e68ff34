"""A save that a storage error ends is tried again, unless the error will not pass."""

import errno
import os

import jax.numpy as jnp
import pytest

from llama_cpt import patience
from llama_cpt.training import manifest
from llama_cpt.training.checkpoint import Checkpoints
from llama_cpt.training.saving import save
from llama_cpt.training.storage_error import SaveError

STATE = {"trained": {"w": jnp.ones(8)}}


@pytest.fixture
def fail(monkeypatch):
    """``fail(number, times)``: so many seals end in the system's error ``number``."""
    monkeypatch.setattr(patience, "PAUSES", (0.0, 0.0, 0.0))
    real = manifest.seal

    def set_up(number: int, times: int) -> list[int]:
        tries: list[int] = []

        def seal(*arguments: object) -> None:
            tries.append(0)
            if len(tries) <= times:
                raise OSError(number, os.strerror(number))
            real(*arguments)

        monkeypatch.setattr(manifest, "seal", seal)
        return tries

    return set_up


def test_what_passes_is_tried_again(tmp_path, fail, capfd):
    tries = fail(errno.EIO, 2)
    with Checkpoints(str(tmp_path), 9) as checkpoints:
        save(checkpoints, 1, STATE, {})
        save(checkpoints, 2, STATE, {}, wait=True)
        assert checkpoints.steps() == [2] and len(tries) == 3
    said = capfd.readouterr().err
    assert "the checkpoint of step 1 was not saved: [Errno 5] Input/output error" in said
    assert said.count("Step 2 is saved instead, in 0 s.") == 2


@pytest.mark.parametrize(("number", "tries"), [(errno.EIO, 4), (errno.ENOSPC, 1)])
def test_what_does_not_pass_is_told(number, tries, tmp_path, fail):
    tried = fail(number, 99)
    with Checkpoints(str(tmp_path), 9) as checkpoints:
        with pytest.raises(SaveError, match="step 1 was not saved"):
            save(checkpoints, 1, STATE, {}, wait=True)
        assert len(tried) == tries and checkpoints.steps() == []
