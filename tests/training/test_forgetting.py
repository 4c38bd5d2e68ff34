"""The forgetting alarm warns or stops, and names the checkpoint to return to."""

from dataclasses import replace
import json
from pathlib import Path
import shutil
import signal

import pytest

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.run_folder import CHECKPOINTS_FOLDER
from llama_cpt.config.monitors import ForgettingConfig
from llama_cpt.config.schema import CheckpointConfig, CorpusConfig, EvaluationConfig, TrainConfig
from llama_cpt.runtime.errors import USER_ERROR, UserError
from llama_cpt.training import attempt
from llama_cpt.training.forgetting import METADATA, ForgettingAlarm, ForgettingError
from llama_cpt.training.stop import Outcome
from llama_cpt.training.trainer import fit
from tests.runs import learnt, run_of, saved_steps, train, train_until


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
    real = attempt.learning_rate
    # Step 5 destroys the model.
    monkeypatch.setattr(attempt, "learning_rate", lambda *a: 100.0 if a[1] == 4 else real(*a))
    output, run = tmp_path / "run", run_of(forgetful)
    message = (
        r"after step 6, .*: zh \+\d+\.\d% from its lowest value, en \+\d+\.\d% from before the "
        rf"first step; .*20\.0%.* limit is {output}/checkpoints/3\. To"
    )
    with pytest.raises(ForgettingError, match=message) as stopped:
        fit(run)
    assert stopped.value.status == USER_ERROR
    lines = learnt(output)
    assert saved_steps(output) == [3]
    found = {line["step"]: line for line in lines if "eval/en/forgetting" in line}
    base, last = (found[step]["eval/en/bits_per_byte"] for step in (0, 6))
    assert found[6]["eval/en/forgetting"] == last / base - 1 > 0.2
    assert found[3]["eval/en/forgetting"] < 0 and found[3]["eval/zh/forgetting"] == 0

    with pytest.raises(ForgettingError, match=message):
        fit(run)
    assert learnt(output) == lines

    warn = replace(forgetful, forgetting=replace(forgetful.forgetting, action="warn"))
    assert fit(replace(run, config=warn)) is Outcome.FINISHED
    assert sum("forgetting: after step" in line for line in caplog.messages) == 2
    # The newest checkpoint is that of step 8, and checkpoint.keep is 1.
    assert saved_steps(output) == [3, 8]


SAMPLES = {"zh": "4 documents of a", "en": "4 documents of b"}


def alarm_after(config: TrainConfig, *evaluations: tuple[int, float, float]) -> ForgettingAlarm:
    """Return an alarm that has observed the bits per byte of ``zh`` and ``en`` after steps."""
    alarm = ForgettingAlarm(config, SAMPLES)
    for step, zh, en in evaluations:
        alarm.observe(step, {"zh": zh, "en": en})
    return alarm


def test_reference_of_an_original_corpus_is_the_evaluation_before_training(forgetful):
    alarm = alarm_after(forgetful, (0, 9, 1.0), (3, 8, 1.19), (6, 7, 1.21), (9, 6, 1.2))
    assert alarm.within == [0, 3, 9]
    assert alarm.newest_within([2, 3, 6]) == [3] and alarm.newest_within([6]) == []
    resumed = ForgettingAlarm(forgetful, SAMPLES, json.loads(json.dumps(alarm.metadata())))
    assert resumed.without_base == []
    changes = resumed.observe(12, {"en": 1.5, "zh": 6.0})
    assert changes == {"en": 0.5, "zh": 0.0}
    with pytest.raises(ForgettingError, match="No checkpoint was saved at an evaluation within"):
        resumed.act(12, changes, lambda: [6])


def test_reference_of_an_additional_corpus_is_its_lowest_value(forgetful):
    alarm = alarm_after(forgetful, (0, 4.0, 1.0), (3, 2.0, 1.0), (6, 2.3, 1.0))
    assert alarm.within == [0, 3, 6]
    resumed = ForgettingAlarm(forgetful, SAMPLES, json.loads(json.dumps(alarm.metadata())))
    changes = resumed.observe(9, {"zh": 2.5, "en": 1.0})
    assert changes == {"zh": 0.25, "en": 0.0}
    with pytest.raises(ForgettingError, match=r"zh \+25.0% from its lowest.* raise the weight of"):
        resumed.act(9, changes, lambda: [6])


def test_alarm_compares_values_of_the_same_sample_only(forgetful):
    saved = alarm_after(forgetful, (0, 4.0, 1.0), (3, 2.0, 1.0)).metadata()
    other = SAMPLES | {"en": "8 documents of b"}
    resumed = ForgettingAlarm(forgetful, other, saved)
    assert resumed.without_base == ["en"]
    assert resumed.observe(6, {"zh": 2.0, "en": 9.0}) == {"zh": 0.0}
    resumed.measure_again({"zh": 7.0, "en": 8.0})
    assert resumed.without_base == []
    assert resumed.observe(9, {"zh": 2.5, "en": 10.0}) == {"zh": 0.25, "en": 0.25}
    # The earlier sample is comparable with nothing that was measured since.
    assert ForgettingAlarm(forgetful, SAMPLES, resumed.metadata()).without_base == ["en"]
    assert ForgettingAlarm(forgetful, SAMPLES, {"step": 3}).without_base == ["zh", "en"]


def base_in(output: Path) -> dict[str, float]:
    """Return the values before the first step in the last checkpoint of ``output``."""
    with CheckpointManager(str(output / CHECKPOINTS_FOLDER), 9) as checkpoints:
        return checkpoints.metadata(8)[METADATA]["base"]


@pytest.mark.slow
def test_values_before_training_are_measured_again_for_another_sample(
    forgetful, tmp_path, monkeypatch, caplog
):
    """The values equal those of a run that evaluates the other sample from its start."""
    warn = replace(forgetful, forgetting=ForgettingConfig("warn", limit=0.2))
    six = replace(warn, evaluation=replace(warn.evaluation, documents=6))
    whole = replace(six, output=str(tmp_path / "whole"))
    assert train(whole) is Outcome.FINISHED
    assert train_until(warn, 4, monkeypatch, signal.SIGTERM) is Outcome.PREEMPTED
    shutil.copytree(tmp_path / "run", tmp_path / "same")
    assert train(replace(warn, output=str(tmp_path / "same"))) is Outcome.FINISHED
    assert not any("initial weights" in line for line in caplog.messages)
    assert train(six) is Outcome.FINISHED
    (line,) = [line for line in caplog.messages if "initial weights" in line]
    assert "present held-out documents of zh, en;" in line
    assert base_in(tmp_path / "run") == base_in(tmp_path / "whole") != base_in(tmp_path / "same")
    last, expected = (
        [line for line in learnt(tmp_path / name) if "eval/en/forgetting" in line][-1]
        for name in ("run", "whole")
    )
    assert last == expected


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
    only_additional = replace(data, original=(), almr=1.0)
    assert replace(forgetful, data=only_additional).watched_corpora == ("zh", "en")
    with pytest.raises(UserError, match="data.heldout is empty"):
        replace(forgetful, data=replace(only_additional, heldout=()))
