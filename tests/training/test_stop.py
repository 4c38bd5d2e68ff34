"""What any process wishes is known to all a step later, once."""

import jax
import pytest

from llama_cpt.config.schema import MeshConfig
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.training import stop
from llama_cpt.training.stop import SAVE_FAILED, Outcome, StopConsensus


@pytest.fixture
def wishes() -> StopConsensus:
    return StopConsensus(make_mesh(MeshConfig(2, 1, 1), jax.devices()[:2]))


def test_alone_a_wish_is_obeyed_at_once(wishes):
    assert wishes.poll(Outcome.PREEMPTED.value) == Outcome.PREEMPTED.value


def test_a_wish_travels_a_step_and_is_heeded_once(wishes, monkeypatch):
    monkeypatch.setattr(stop, "process_count", lambda: 2)
    assert [wishes.poll(SAVE_FAILED), wishes.poll(SAVE_FAILED)] == [0, SAVE_FAILED]
    wishes.reset()
    assert [wishes.poll(0), wishes.poll(Outcome.PREEMPTED.value)] == [0, 0]
    assert wishes.poll(0) == Outcome.PREEMPTED.value
