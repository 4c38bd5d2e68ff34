"""Every process receives the largest vote of all processes once, one step later."""

import jax
import pytest

from llama_cpt.config.schema import MeshConfig
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.training import stop
from llama_cpt.training.stop import SAVE_FAILED, Outcome, StopConsensus


@pytest.fixture
def consensus() -> StopConsensus:
    return StopConsensus(make_mesh(MeshConfig(2, 1, 1), jax.devices()[:2]))


def test_single_process_gets_its_vote_at_once(consensus):
    assert consensus.poll(Outcome.PREEMPTED.value) == Outcome.PREEMPTED.value


def test_vote_arrives_a_step_later_and_once(consensus, monkeypatch):
    monkeypatch.setattr(stop, "process_count", lambda: 2)
    assert [consensus.poll(SAVE_FAILED), consensus.poll(SAVE_FAILED)] == [0, SAVE_FAILED]
    consensus.reset()
    assert [consensus.poll(0), consensus.poll(Outcome.PREEMPTED.value)] == [0, 0]
    assert consensus.poll(0) == Outcome.PREEMPTED.value
