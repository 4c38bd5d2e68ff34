"""Tests that two real processes produce the same scores and references as one."""

from dataclasses import replace
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from llama_cpt import evaluate
from llama_cpt.checkpoint.run_folder import save_weights
from llama_cpt.config.fields import to_dict
from llama_cpt.config.loading import save_config
from llama_cpt.config.schema import (
    ChatConfig,
    CorpusConfig,
    MeshConfig,
    PreferenceConfig,
    TrainConfig,
)
from llama_cpt.evaluation.scores import LINES, SETTINGS, ExampleScore, read_scores
from llama_cpt.model.llama import Llama
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.training.run import build_run
from tests.processes.launched import Launched, ended, launch

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: [eval]")
from tests.evaluation.benchmark_files import save_model, write_benchmarks  # noqa: E402

SECOND = "import os, sys\nsecond = os.environ['JAX_PROCESS_ID'] == '1'\n"
# Only the first process knows which scores exist already.
READS_NO_SCORES = (
    f"{SECOND}from llama_cpt.evaluation import scores\nif second: scores.start_task = None"
)
TRAINS_NOTHING = (
    "from llama_cpt.training import stop, trainer\n"
    "trainer.fit = lambda *arguments, **options: stop.Outcome.FINISHED"
)


def run_two_processes(arguments: list[str], folder: Path, program: str = "") -> Launched:
    """Run two processes to a successful end; they share as many devices as this process has."""
    folder.mkdir(exist_ok=True)
    devices = jax.device_count()
    launched = ended(lambda: launch(arguments, folder, 2, program, devices=devices))
    assert set(launched.ended()) == {0}, launched.log()
    return launched


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=128)


def by_key(folder: Path) -> dict[tuple, ExampleScore]:
    tasks = read_scores(str(folder / "tiny"))
    return {(task, *score.key): score for task, scores in tasks.items() for score in scores}


def keep_some(whole: Path, folder: Path, task: str) -> None:
    """Write the files of an evaluation that was killed after two of the scores in ``whole``."""
    folder.mkdir(parents=True)
    (folder / f"{task}{SETTINGS}").write_bytes((whole / f"{task}{SETTINGS}").read_bytes())
    kept = (whole / f"{task}{LINES}").read_bytes().splitlines(keepends=True)[:2]
    (folder / f"{task}{LINES}").write_bytes(b"".join(kept))


@pytest.mark.slow
def test_scores_equal_those_of_one_process_after_a_kill(model, tmp_path):
    data = write_benchmarks(tmp_path / "data")
    lines = [json.dumps({"text": "The cat sat on 12 mats. " * n}) for n in range(1, 6)]
    (tmp_path / "en.jsonl").write_text("\n".join(lines) + "\n")
    arguments = [model, "--tasks", "bpb,xcopa_zh,gsm8k", "--data", data, "--shots", "0"]
    arguments += ["--heldout", f"en={tmp_path}/en.jsonl"]
    evaluate.main([*arguments, "--output", str(tmp_path / "alone")])
    keep_some(tmp_path / "alone/tiny", tmp_path / "both/tiny", "gsm8k")
    arguments = ["llama_cpt.evaluate", *arguments, "--output", str(tmp_path / "both")]
    logs = run_two_processes(arguments, tmp_path / "logs", READS_NO_SCORES).logs
    ours, theirs = by_key(tmp_path / "both"), by_key(tmp_path / "alone")
    assert ours.keys() == theirs.keys() and len(ours) == 5 + 3 + 3
    kept = [file.read_text().splitlines() for file in tmp_path.glob(f"both/tiny/*{LINES}")]
    assert sum(map(len, kept)) == len(ours)
    for key, score in ours.items():
        assert score.score == pytest.approx(theirs[key].score, rel=1e-4)
        answers = [found.detail.get("answers", []) for found in (score, theirs[key])]
        text = key[0] == "gsm8k"
        assert answers[0] == (answers[1] if text else pytest.approx(answers[1], rel=1e-4))
    first, second = (log.read_text() for log in logs)
    assert "gsm8k" in first and "gsm8k" not in second


@pytest.fixture
def dpo(make_config, corpora, tmp_path) -> TrainConfig:
    """The config of a DPO run that starts from random weights."""
    plain = make_config(tmp_path / "run")
    model = replace(plain.architecture, context_length=128)
    about = {"step": 0, "rows_consumed": 0, "config": {"model": to_dict(model)}}
    save_weights(str(tmp_path / "start"), Llama(model, jax.random.key(1)), about)
    zh, en = (CorpusConfig(name, f"{corpora}/{name}.preferences.jsonl") for name in ("zh", "en"))
    data = replace(
        plain.data,
        sequence_length=96,
        chat=ChatConfig(),
        prepared=str(tmp_path / "alone"),
        additional=(zh,),
        original=(en,),
        heldout=(),
        max_epochs=50.0,
    )
    return replace(
        plain,
        model=model,
        data=data,
        init_from=str(tmp_path / "start"),
        objective=PreferenceConfig(loss="sigmoid"),
        mesh=MeshConfig(1, 8, 1),
        global_batch_size=8,
        microbatch_size=0,
        evaluation=replace(plain.evaluation, batch_size=8),
    )


@pytest.mark.proof  # In CI: tests/processes/test_shared_work.py and tests/training.
def test_references_equal_those_of_one_process(dpo, tmp_path):
    build_run(dpo, make_mesh(dpo.mesh))
    shared = replace(dpo, data=replace(dpo.data, prepared=str(tmp_path / "both")))
    save_config(shared, tmp_path / "config.json")
    arguments = ["llama_cpt.train", str(tmp_path / "config.json")]
    run_two_processes(arguments, tmp_path / "logs", TRAINS_NOTHING)
    files = sorted((tmp_path / "alone/reference").rglob("*.npy"))
    assert len(files) == 2
    for file in files:
        ours = np.load(tmp_path / "both" / file.relative_to(tmp_path / "alone"))
        assert ours.size and np.count_nonzero(ours)
        np.testing.assert_allclose(ours, np.load(file), rtol=1e-5, atol=1e-5)
