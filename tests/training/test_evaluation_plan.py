"""Held-out evaluation takes at most 5 % of a run's tokens, unless the config sets its sample."""

from dataclasses import replace

import numpy as np
import pytest

from llama_cpt.config.schema import EvaluationConfig
from llama_cpt.training.evaluation_plan import (
    MAX_SHARE,
    plan_evaluations,
    run_tokens,
    seconds_per_evaluation,
)
from tests.runs import run_of


class Documents:
    """``count`` documents with text of ``size`` tokens."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def read(self, indices: np.ndarray) -> list[tuple[np.ndarray, int]]:
        return [(np.arange(self.size + 2, dtype=np.uint32), self.size) for _ in indices]


CORPORA = {"zh": Documents(400, 20), "en": Documents(300, 45)}


def config_of(make_config, num_steps, **evaluation):
    return make_config("run", num_steps=num_steps, evaluation=EvaluationConfig(**evaluation))


@pytest.mark.parametrize("num_steps", [40, 100, 1000, 3000, 100_000])
def test_default_evaluations_take_at_most_five_percent(num_steps, make_config):
    config = config_of(make_config, num_steps)
    plan = plan_evaluations(config, CORPORA)
    assert plan.share <= MAX_SHARE and not plan.warning
    assert {0, num_steps} <= plan.steps and len(plan.steps) <= 10 + num_steps // 500
    # 4 rows of 32 tokens per step.
    assert plan.run_tokens == run_tokens(config) == num_steps * 128
    assert plan.tokens % (plan.batch_size * 32) == 0
    assert f"{len(plan.steps) * plan.tokens:,} tokens" in plan.describe()


def test_long_run_keeps_all_evaluations_and_the_largest_sample(make_config):
    plan = plan_evaluations(config_of(make_config, 100_000, every_steps=20_000), CORPORA)
    assert (plan.documents, plan.left_out, plan.batch_size) == (256, 0, 8)
    assert len(plan.steps) == 1 + 15 + 5
    assert {1, 2, 4, 16384, 20_000} <= plan.steps


def test_sample_has_priority_over_the_evaluations_between(make_config):
    plan = plan_evaluations(config_of(make_config, 400), CORPORA)
    # 5 % of 400 * 128 tokens is 2,560 tokens: four evaluations of 20 rows. A document of each
    # corpus takes three rows.
    assert (plan.documents, plan.batch_size, plan.tokens) == (6, 6, 18 * 32)
    assert sorted(plan.steps) == [0, 16, 256, 400] and plan.left_out == 7
    assert plan.describe(15.0) == (
        "held-out evaluation: 4 times up to 6 documents per corpus, 2,304 tokens, 4.5% of the "
        "run's 51,200 tokens, about 1m00s; 7 more would exceed 5%"
    )


def test_config_can_set_the_sample(make_config):
    plan = plan_evaluations(config_of(make_config, 8, documents=2, batch_size=4), CORPORA)
    assert sorted(plan.steps) == [0, 1, 2, 4, 8]
    assert (plan.documents, plan.batch_size, plan.tokens) == (2, 4, 4 * 2 * 32)
    assert plan.warning.startswith("held-out evaluation takes 125% of the run's tokens, more than")


def test_compared_runs_have_the_same_sample(make_config):
    small, large = (config_of(make_config, num_steps) for num_steps in (400, 4000))
    limited = plan_evaluations(large, CORPORA, limit_tokens=run_tokens(small))
    assert limited.documents == plan_evaluations(small, CORPORA).documents == 6
    assert limited.left_out == 0 and limited.share < MAX_SHARE
    resumed = plan_evaluations(large, CORPORA, documents=7)
    assert resumed.documents == 7


def test_smallest_sample_is_one_document_per_corpus(make_config):
    plan = plan_evaluations(config_of(make_config, 8), CORPORA, row_multiple=2)
    assert (plan.documents, sorted(plan.steps), plan.batch_size) == (1, [0, 8], 4)
    assert "1 document per corpus" in plan.describe() and "train longer" in plan.warning


def test_run_without_heldout_text_has_no_evaluation(make_config):
    plan = plan_evaluations(config_of(make_config, 8), {})
    assert not plan.steps and plan.share == 0
    assert "data.heldout is empty" in plan.describe()


def test_duration_is_that_of_an_evaluation_without_compilation():
    def line(step, seconds):
        return {"step": step, "perf/evaluation_seconds": seconds}

    lines = [line(0, 0.1), line(1, 30.0), {"step": 2}, line(5, 4.0)]
    assert seconds_per_evaluation(lines) == 4.0
    assert seconds_per_evaluation(lines[:1]) is None


def test_resumed_run_keeps_its_sample(make_config, tmp_path):
    run = run_of(make_config(tmp_path / "run", evaluation=EvaluationConfig()))
    saved = {"config": {"evaluation": {"documents": 3}}}
    assert run.resumed(saved).evaluations.documents == 3
    assert run.resumed(saved | {"heldout_documents": 2}).evaluations.documents == 2
    fixed = replace(run, config=replace(run.config, evaluation=EvaluationConfig(documents=4)))
    assert fixed.resumed(saved).evaluations.documents == 4
