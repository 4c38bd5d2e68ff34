"""The forgetting alarm warns or stops, and names the checkpoint to return to."""

from dataclasses import replace
from typing import Any

import pytest

from llama_cpt.config.monitors import ForgettingConfig
from llama_cpt.config.schema import CheckpointConfig, CorpusConfig, EvaluationConfig, TrainConfig
from llama_cpt.runtime.errors import USER_ERROR, UserError
from llama_cpt.training import trainer
from llama_cpt.training.forgetting import METADATA, ForgettingAlarm, ForgettingError
from llama_cpt.training.stop import Outcome
from llama_cpt.training.trainer import fit
from tests.runs import learnt, run_of, saved_steps


@pytest.fixture
def forgetful(make_config, tmp_path) -> TrainConfig:
    """A config in which evaluations and checkpoints coincide."""
    return make_config(
        tmp_path / "run",
        forgetting=ForgettingConfig("stop", limit=0.2),
        evaluation=EvaluationConfig(3, early_evaluations=False, documents=4, batch_size=2),
        checkpoint=CheckpointConfig(every_steps=3, keep=1),
    )


def test_alarm_stops_or_warns_and_names_the_checkpoint_to_return_to(
    forgetful, tmp_path, monkeypatch, caplog
):
    real = trainer.learning_rate
    # Step 5 destroys the model.
    monkeypatch.setattr(trainer, "learning_rate", lambda *a: 100.0 if a[1] == 4 else real(*a))
    output, run = tmp_path / "run", run_of(forgetful)
    message = rf"after step 6, .*: en \+\d+\.\d%; .*20\.0%.* limit is {output}/checkpoints/3\. To"
    with pytest.raises(ForgettingError, match=message) as stopped:
        fit(run)
    assert stopped.value.status == USER_ERROR
    lines = learnt(output)
    assert saved_steps(output) == [3]
    found = {line["step"]: line for line in lines if "eval/en/forgetting" in line}
    base, last = (found[step]["eval/en/bits_per_byte"] for step in (0, 6))
    assert found[6]["eval/en/forgetting"] == last / base - 1 > 0.2
    assert found[3]["eval/en/forgetting"] < 0 and "eval/zh/forgetting" not in found[6]

    with pytest.raises(ForgettingError, match=message):
        fit(run)
    assert learnt(output) == lines

    warn = replace(forgetful, forgetting=replace(forgetful.forgetting, action="warn"))
    assert fit(replace(run, config=warn)) is Outcome.FINISHED
    assert sum("forgetting: after step" in line for line in caplog.messages) == 2
    # The newest checkpoint is that of step 8, and checkpoint.keep is 1.
    assert saved_steps(output) == [3, 8]


def alarm_after(config: TrainConfig, *evaluations: tuple[int, float]) -> ForgettingAlarm:
    """Return an alarm that has observed the bits per byte of ``en`` after the given steps."""
    alarm = ForgettingAlarm(config)
    for step, bits in evaluations:
        alarm.observe(step, {"en": bits, "zh": 9.0 * step})
    return alarm


def test_limit_is_relative_to_the_evaluation_before_training(forgetful):
    alarm = alarm_after(forgetful, (0, 1.0), (3, 1.19), (6, 1.21), (9, 1.2))
    assert alarm.within == [0, 3, 9]
    assert alarm.newest_within([2, 3, 6]) == [3] and alarm.newest_within([6]) == []
    saved: dict[str, Any] = alarm.metadata()
    resumed = ForgettingAlarm(forgetful, saved)
    assert resumed.observe(12, {"en": 1.5, "zh": 1.0}) == {"en": 0.5}
    with pytest.raises(ForgettingError, match="No checkpoint was saved at an evaluation within"):
        resumed.act(12, {"en": 0.5}, lambda: [6])
    with pytest.raises(UserError, match="no held-out results of en before the first step"):
        ForgettingAlarm(forgetful, {METADATA: {"base": {}, "within": []}})


def test_alarm_without_held_out_text_is_rejected(forgetful):
    data = forgetful.data
    without = replace(data, heldout=data.heldout[:1])
    with pytest.raises(UserError, match=r"no held-out corpus is named 'en' \(data.heldout: zh\)"):
        replace(forgetful, data=without)
    named = replace(forgetful.forgetting, corpora=("zh",))
    assert replace(forgetful, data=without, forgetting=named).watched_corpora == ("zh",)
    extra = (*data.original, CorpusConfig("code", "code.jsonl"))
    with pytest.raises(UserError, match="no held-out corpus is named 'code'"):
        replace(forgetful, data=replace(data, original=extra))
    with pytest.raises(UserError, match="data.original is empty"):
        replace(forgetful, data=replace(data, original=(), almr=1.0))
