"""A run trains, reports, evaluates, saves, stops on a signal and resumes bit-exactly."""

from dataclasses import replace
import fcntl
import json
import logging
import os
from pathlib import Path
import signal

import jax
import pytest

from llama_cpt.checkpoint.health import DivergedError
from llama_cpt.config.loading import load_config
from llama_cpt.config.schema import (
    CorpusConfig,
    EvaluationConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime import distributed
from llama_cpt.runtime.errors import UserError
from llama_cpt.training import attempt, evaluation
from llama_cpt.training.cadence import evaluation_steps
from llama_cpt.training.optimizer import learning_rate, saved_schedule_version
from llama_cpt.training.run import build_run
from llama_cpt.training.stop import Outcome
from llama_cpt.training.trainer import fit
from tests.runs import learnt, run_of, saved_steps, train, train_until

NEVER = EvaluationConfig(every_steps=100, early_evaluations=False)


@pytest.fixture(scope="module")
def whole(make_config, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert train(make_config(output)) is Outcome.FINISHED
    return output


def test_logs_every_step_and_learns(whole):
    lines = [line for line in learnt(whole) if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[-1]["train/loss"] < lines[0]["train/loss"] - 0.2
    assert [line["train/tokens"] for line in lines] == [128 * n for n in range(1, 9)]
    assert {"train/zh/loss", "train/en/loss", "train/additional/loss"} <= set(lines[-1])
    assert saved_steps(whole) == [3, 6, 8]
    assert list((whole / "tensorboard").iterdir())


def test_evaluates_early_and_at_the_end_of_a_run(whole):
    lines = [line for line in learnt(whole) if "eval/zh/bits_per_byte" in line]
    assert [line["step"] for line in lines] == [0, 1, 2, 4, 5, 8]
    assert all(line["eval/en/bits_per_byte"] > 0 for line in lines)


def test_description_states_the_mask_of_cudnn_attention(make_config, tmp_path):
    run = run_of(make_config(tmp_path / "run"))
    assert "attention reference, " in run.describe()
    run.program.state_shapes.trained.attention = "cudnn"
    config = replace(
        run.config,
        model=replace(run.config.architecture, context_length=8192),
        data=replace(run.config.data, sequence_length=8192),
    )
    message = replace(run, config=config).describe()
    assert "attention cudnn (its mask takes 128 MiB per row)" in message


def test_evaluation_steps():
    config = EvaluationConfig(every_steps=10)
    assert evaluation_steps(config, 25) == [0, 1, 2, 4, 8, 10, 20, 25]
    assert evaluation_steps(config, 3) == [0, 1, 2, 3]
    sparse = replace(config, early_evaluations=False)
    assert evaluation_steps(sparse, 25) == [0, 10, 20, 25]


def test_realized_ratio_is_within_a_row_of_the_target(whole, make_config):
    for line in learnt(whole):
        if "train/loss" in line:
            rows = line["step"] * 4
            target = line["mixture/almr_target"]
            assert target == pytest.approx(make_config("run").data.almr)
            assert abs(line["mixture/almr_realized"] - target) * rows < 1


@pytest.mark.parametrize(
    "steps", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
)
def test_run_stopped_by_sigterm_resumes_bit_exactly(
    steps, whole, make_config, tmp_path, monkeypatch
):
    config = make_config(tmp_path / "run")
    outcome = train_until(config, steps, monkeypatch, signal.SIGTERM)
    assert outcome is Outcome.PREEMPTED and outcome.value == 75
    assert saved_steps(tmp_path / "run")[-1] == steps
    assert train(config) is Outcome.FINISHED
    assert learnt(tmp_path / "run") == learnt(whole)


@pytest.mark.parametrize("step", [0, pytest.param(4, marks=pytest.mark.slow), 8])
def test_signal_ends_an_evaluation_and_the_resumed_run_repeats_it(
    step, whole, make_config, tmp_path, monkeypatch
):
    config, real, scored = make_config(tmp_path / "run"), evaluation.evaluate_heldout, []
    before = sorted(run_of(config).evaluations.steps).index(step)

    def evaluate_heldout(score, *arguments, **options):
        scored.append(0)

        def score_with_signal(batch):
            scored[-1] += 1
            if (len(scored), scored[-1]) == (before + 1, 2):
                os.kill(os.getpid(), signal.SIGINT)
            return score(batch)

        return real(score_with_signal, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate_heldout", evaluate_heldout)
        assert train(config) is Outcome.INTERRUPTED
        assert scored[before:] == [2]
        if step == 4:
            # A process that ends before its next checkpoint leaves results in the metrics that the
            # monitors of no checkpoint contain, so the evaluation is repeated again.
            with monkeypatch.context() as lost, pytest.raises(ZeroDivisionError):
                lost.setattr(attempt, "learning_rate", lambda *_: 1 / 0)
                train(config)
            assert len(scored) == before + 2
        assert train(config) is Outcome.FINISHED
    assert scored[-1] > 2
    assert learnt(tmp_path / "run") == learnt(whole)
    assert train(config) is Outcome.FINISHED
    assert learnt(tmp_path / "run") == learnt(whole)


@pytest.mark.slow
def test_logged_steps_do_not_depend_on_the_interruption(make_config, tmp_path, monkeypatch):
    config = make_config(tmp_path / "run", log_every_steps=4)
    train_until(config, 2, monkeypatch, signal.SIGINT)
    train(config)
    steps = [line["step"] for line in learnt(tmp_path / "run") if "train/loss" in line]
    assert steps == [1, 4, 8]


def spent(output: Path) -> dict[str, float]:
    """Return the seconds per goodput part over all attempts, from the last line of metrics."""
    last = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    parts = {key: value for key, value in last.items() if key.startswith("perf/seconds/")}
    return {key.removeprefix("perf/seconds/"): value for key, value in parts.items()}


@pytest.mark.slow
def test_starts_before_the_first_save_count_as_repeated(make_config, tmp_path, monkeypatch):
    config = make_config(tmp_path / "run")

    def lost_at(step: int) -> None:
        def rate(optimizer, at: int, *rest: int) -> float:
            if at == step:
                raise RuntimeError("the host is lost")
            return 1e-3

        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="is lost"):
            patch.setattr(attempt, "learning_rate", rate)
            train(config)

    lost_at(2)
    seconds = spent(tmp_path / "run")["step"]
    assert seconds > 0
    for step in (0, 0, 2):
        lost_at(step)
        parts = spent(tmp_path / "run")
        assert parts["repeated"] >= seconds and parts["stopped"] > 0
    # Without a checkpoint, a different config starts a new run.
    train(replace(config, seed=5))
    assert not {"repeated", "stopped"} & set(spent(tmp_path / "run"))


def test_finished_run_trains_nothing(whole):
    before = learnt(whole)
    assert train(run_config(whole)) is Outcome.FINISHED
    assert learnt(whole) == before and saved_steps(whole) == [3, 6, 8]


def run_config(output: Path) -> TrainConfig:
    return load_config(str(output / "config.json"))


def rates_of(output: Path) -> list[float]:
    return [line["train/learning_rate"] for line in learnt(output) if "train/loss" in line]


@pytest.mark.slow
def test_run_of_an_earlier_version_keeps_its_schedule(make_config, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "llama_cpt")
    config, real = make_config(tmp_path / "run", evaluation=NEVER), attempt.checkpoint_metadata
    with monkeypatch.context() as patch:
        # The metadata of version 0.1 do not contain the version of the schedule.
        patch.setattr(
            attempt,
            "checkpoint_metadata",
            lambda *a: {k: v for k, v in real(*a).items() if k != "schedule_version"},
        )
        train_until(config, 3, monkeypatch, signal.SIGTERM)
    # The version is also kept by the second attempt, which writes it.
    train_until(config, 5, monkeypatch, signal.SIGTERM)
    train(config)
    rates = {
        version: [learning_rate(config.optimizer, step, 8, version) for step in range(8)]
        for version in (1, 2)
    }
    assert rates_of(tmp_path / "run") == pytest.approx(rates[2][:3] + rates[1][3:])
    assert caplog.text.count("keeps its cosine learning-rate schedule of version 1") == 2
    new = replace(config, output=str(tmp_path / "new"))
    train_until(new, 3, monkeypatch, signal.SIGTERM)
    train(new)
    assert rates_of(tmp_path / "new") == pytest.approx(rates[2])


def test_schedule_of_a_later_version_is_rejected():
    with pytest.raises(UserError, match="schedule of version 3, but this program has versions 1"):
        saved_schedule_version({"schedule_version": 3})


def test_nan_loss_stops_the_run_and_keeps_checkpoints(make_config, tmp_path, monkeypatch):
    config = make_config(tmp_path / "run", log_every_steps=100)
    real = attempt.learning_rate
    # The update of step 4 is infinite, so the loss of step 5 is NaN. Step 6 would be saved.
    spoiled = lambda *a: float("inf") if a[1] == 3 else real(*a)
    monkeypatch.setattr(attempt, "learning_rate", spoiled)
    with pytest.raises(DivergedError, match="held-out loss of zh after step 4 is nan"):
        train(config)
    blind = replace(config, data=replace(config.data, heldout=()), output=str(tmp_path / "blind"))
    message = r"loss of step 5 is nan\. Lower optim[^\n]*checkpoint of step 3 is valid[^\n]*$"
    with pytest.raises(DivergedError, match=message):
        train(blind)
    assert saved_steps(tmp_path / "run") == saved_steps(tmp_path / "blind") == [3]
    monkeypatch.setattr(attempt, "learning_rate", real)
    assert train(config) is Outcome.FINISHED


def test_weights_after_a_nan_gradient_are_not_saved(make_config, tmp_path, monkeypatch):
    """The loss belongs to the weights before the update, so only the gradient shows the NaN."""
    run = run_of(make_config(tmp_path / "run"))
    real = run.program.step

    def step(state, batch, rate):
        state, metrics = real(state, batch, rate)
        lost = jax.numpy.float32("nan") if trainer_steps.append(0) or len(trainer_steps) == 6 else 1
        return state, metrics | {"grad_norm": metrics["grad_norm"] * lost}

    trainer_steps: list[int] = []
    run = replace(run, program=replace(run.program, step=step))
    with pytest.raises(UserError, match="grad_norm of step 6 is nan"):
        fit(run)
    assert saved_steps(tmp_path / "run") == [3]


def test_every_step_writes_to_the_memory_of_the_state(whole, make_config, tmp_path):
    """Without donation, a step needs memory for a second state.

    The first step of a new run, the step after a save and the first step of a resumed run are at
    risk: their arrays can be in the memory of NumPy or in use by the save.
    """
    in_place = []

    def train_and_record(config: TrainConfig) -> None:
        run = run_of(config)
        real = run.program.step

        def step(state, batch, rate):
            before = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)}
            state, metrics = real(state, batch, rate)
            after = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)}
            in_place.append(before == after)
            return state, metrics

        fit(replace(run, program=replace(run.program, step=step)))

    config = replace(make_config(tmp_path / "run"), init_from=str(whole), num_steps=4)
    train_and_record(config)
    train_and_record(replace(config, num_steps=6))
    assert in_place == [True] * 6


def test_second_process_in_a_folder_is_rejected(make_config, tmp_path):
    run = run_of(make_config(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process trains in this folder"):
            fit(run)
    assert fit(run) is Outcome.FINISHED


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"global_batch_size": 8}, "global_batch_size"),
        ({"seed": 5}, "seed"),
        ({"optimizer": OptimizerConfig(peak_learning_rate=1.0)}, "optimizer.peak_learning_rate"),
    ],
)
def test_resume_rejects_changed_fields(change, field, whole):
    config = replace(run_config(whole), num_steps=9, **change)
    with pytest.raises(UserError, match=field):
        train(config)
    assert saved_steps(whole) == [3, 6, 8]


def test_resume_rejects_changed_corpus(make_config, tmp_path, corpora, monkeypatch):
    config = make_config(tmp_path / "run")
    train_until(config, 2, monkeypatch, signal.SIGTERM)
    texts = (corpora / "en.jsonl").read_text(encoding="utf-8").splitlines()
    other = tmp_path / "en.jsonl"
    other.write_text("\n".join([*texts[1:], json.dumps({"text": "moon " * 30})]) + "\n")
    corpus = replace(config.data.original[0], source=str(other))
    data = replace(config.data, original=(corpus,), prepared=str(tmp_path / "prepared"))
    with pytest.raises(UserError, match="changed.*en"):
        train(replace(config, data=data))
    assert saved_steps(tmp_path / "run") == [2]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"global_batch_size": 6, "microbatch_size": 3}, "microbatch_size=3"),
        ({"evaluation": EvaluationConfig(batch_size=3)}, "evaluation.batch_size=3"),
        ({"num_steps": 10_000}, "max_epochs"),
    ],
)
def test_impossible_config_is_rejected_before_the_first_step(fields, named, make_config, tmp_path):
    config = make_config(tmp_path / "run", mesh=MeshConfig(1, 2, 1), **fields)
    with pytest.raises(UserError, match=named):
        build_run(config, make_mesh(config.mesh, jax.devices()[:2]))
    assert not (tmp_path / "run").exists()


def test_only_the_first_process_warns(make_config, tmp_path, monkeypatch, caplog):
    source = tmp_path / "en.jsonl"
    source.write_text('{"text": "hill  water"}\n' * 20)
    config = make_config(tmp_path / "run")
    english = (CorpusConfig("en", str(source)),)
    data = replace(
        config.data,
        prepared=str(tmp_path / "rows"),
        original=english,
        heldout=english,
        max_epochs=9.0,
    )
    config = replace(config, data=data)
    run_of(config)
    message = caplog.text
    for name in ("en", "held-out en"):
        assert f"lossy: the tokenizer changes 100.0% of the documents of {name} (" in message
    assert "held-out corpus 'en' and corpus 'en' share" in message
    monkeypatch.setattr(distributed.global_state, "process_id", 1)
    caplog.clear()
    run_of(config)
    assert not caplog.records


def test_tokenizer_with_more_tokens_than_the_model_is_rejected(make_config, tmp_path):
    config = make_config(tmp_path / "run")
    with pytest.raises(UserError, match="model.vocab_size"):
        run_of(replace(config, model=replace(config.architecture, vocab_size=256)))


def test_wrong_initial_weights_are_rejected_before_data_is_prepared(make_config, whole, tmp_path):
    config = make_config(tmp_path / "run", init_from=str(whole))
    config = replace(config, data=replace(config.data, prepared=str(tmp_path / "rows")))
    for changed, message in (
        (replace(config, init_from=str(tmp_path / "nothing")), "no such folder"),
        (replace(config, model=replace(config.architecture, rope_theta=1.0)), "rope_theta"),
        (replace(config, output=str(whole / "config.json")), "is a file"),
    ):
        with pytest.raises(UserError, match=message):
            run_of(changed)
    assert not list(tmp_path.iterdir())
    assert train(config) is Outcome.FINISHED
