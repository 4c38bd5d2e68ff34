"""Pipelines: stages in order, resuming after a stop, the report and the export."""

from dataclasses import replace
import json
import logging
from pathlib import Path
import shutil

import jax
import pytest

from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.config.schema import (
    ChatConfig,
    CorpusConfig,
    EvaluationConfig,
    MeshConfig,
    PreferenceConfig,
)
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.pipelines.run import run_pipeline
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.metric_table import SECTIONS
from llama_cpt.training.run import build_run
from llama_cpt.training.stop import Outcome
from llama_cpt.training.trainer import fit


@pytest.fixture
def pipeline(make_config, corpora, tmp_path, monkeypatch) -> PipelineConfig:
    """Config of CPT, SFT and DPO with four steps each, on two devices to compile faster."""
    two = jax.devices()[:2]
    monkeypatch.setattr(jax, "devices", lambda: two)

    def chat(config, kind):
        def corpus(language):
            return (CorpusConfig(language, str(corpora / f"{language}.{kind}.jsonl")),)

        data = replace(
            config.data,
            sequence_length=96,
            chat=ChatConfig(),
            prepared=str(corpora / f"prepared_{kind}"),
            additional=corpus("zh"),
            original=corpus("en"),
            max_epochs=50.0,
        )
        return replace(config, data=data)

    # A question rendered with the chat template is longer than the rows of the corpora.
    model = replace(make_config(tmp_path).architecture, context_length=128)

    def stage(name):
        return make_config(
            tmp_path / name,
            model=model,
            num_steps=4,
            mesh=MeshConfig(1, 2, 1),
            global_batch_size=8,
            microbatch_size=0,
            evaluation=EvaluationConfig(every_steps=5, documents=4, batch_size=8),
        )

    cpt, sft = stage("cpt"), chat(stage("sft"), "chats")
    dpo = chat(stage("dpo"), "preferences")
    examination = tmp_path / "examination.jsonl"
    question = {"language": "en", "question": "hill", "answers": ["water"], "chance": 0.1}
    examination.write_text(json.dumps(question) + "\n")
    return PipelineConfig(
        output=str(tmp_path / "pipeline"),
        stages=(cpt, sft, replace(dpo, objective=PreferenceConfig(loss="sigmoid"))),
        prompts=("fire", "火"),
        questions=str(examination),
        max_new_tokens=4,
        export_dtype="float32",
    )


def metrics(stage) -> list[dict]:
    """Return the lines of a stage's ``metrics.jsonl``."""
    lines = (Path(stage.output) / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_pipeline_runs_all_stages_and_resumes(pipeline, caplog):
    assert run_pipeline(pipeline) is Outcome.FINISHED
    output = Path(pipeline.output)
    report = (output / "report.md").read_text()
    assert "before" not in report  # The pipeline starts from random weights.
    for text in ("| cpt |", "| sft |", "| dpo |", "rewards/margins", "## fire", "0 of 1", "10%"):
        assert text in report, text
    assert (output / "report.png").stat().st_size > 5000
    assert json.loads((output / "exported" / "config.json").read_text())["model_type"] == "llama"

    assert "chat_template.jinja" in {path.name for path in (output / "exported").iterdir()}
    settings = json.loads((output / "exported" / "generation_config.json").read_text())
    tokenizer = load_tokenizer(pipeline.stages[0].data.tokenizer)
    assert settings["eos_token_id"] == [tokenizer.eos_id, tokenizer.special_id("<|eot_id|>")]

    documented = {metric.key for section in SECTIONS.values() for metric in section}
    names = {corpus.name for stage in pipeline.stages for corpus in stage.data.heldout}
    names |= {one.name for s in pipeline.stages for one in s.data.additional + s.data.original}
    written = {key for stage in pipeline.stages for line in metrics(stage) for key in line}
    general = {
        "/".join("NAME" if part in names else part for part in key.split("/")) for key in written
    }
    assert general - {"step"} <= documented

    _, sft, dpo = pipeline.linked_stages()
    assert sft.init_from == pipeline.stages[0].output and dpo.init_from == sft.output
    first = metrics(dpo)[1]
    assert first["train/loss"] == pytest.approx(0.693147, abs=1e-5)  # log 2 at the reference model
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)

    shutil.rmtree(dpo.output)
    (output / "report.md").unlink()
    before = {stage.output: metrics(stage) for stage in pipeline.stages[:2]}
    with caplog.at_level(logging.INFO, "llama_cpt"):
        caplog.clear()
        assert run_pipeline(pipeline) is Outcome.FINISHED
    assert "pipeline: dpo" in caplog.text and "pipeline: sft" not in caplog.text
    assert before == {stage.output: metrics(stage) for stage in pipeline.stages[:2]}
    assert (output / "report.md").read_text() == report


@pytest.mark.slow
def test_report_compares_scores_after_every_stage(pipeline):
    heldout = pipeline.stages[0].data.heldout
    assert heldout
    first = replace(pipeline, stages=pipeline.stages[:1], prompts=(), questions="", tasks=("bpb",))
    run_pipeline(first)
    output = Path(pipeline.output)
    assert "## Side by side" in (output / "report.md").read_text()
    scores = output / "scores" / "cpt" / "bpb.jsonl"
    before = scores.stat().st_mtime_ns
    run_pipeline(replace(first, stages=pipeline.stages[:2]))
    report = (output / "report.md").read_text()
    assert all(f"| bpb: {corpus.name} |" in report for corpus in heldout)
    assert "**sft** " in report and "(scores/differences.png)" in report
    assert "data:image/png" in (output / "scores" / "report.html").read_text()
    assert scores.stat().st_mtime_ns == before
    # Scores of other weights are replaced.
    run_pipeline(replace(first, stages=(replace(pipeline.stages[0], num_steps=5),)))
    assert scores.stat().st_mtime_ns != before


def test_tasks_that_run_code_are_rejected_before_training(pipeline):
    pytest.importorskip("lm_eval", reason="the extra [eval] is not installed")
    with pytest.raises(UserError, match="tasks: humaneval runs code"):
        run_pipeline(replace(pipeline, tasks=("humaneval",)))
    assert not Path(pipeline.stages[0].output).exists()


@pytest.mark.slow
def test_other_weights_are_scored_and_exported_again(pipeline):
    cpt = replace(pipeline, stages=pipeline.stages[:1])
    run_pipeline(cpt)
    output = Path(pipeline.output)
    files = (output / "exported.json", output / "answers" / "cpt.json")
    before = [file.read_text() for file in files]
    run_pipeline(replace(cpt, stages=(replace(cpt.stages[0], num_steps=5),)))
    for old, file in zip(before, files, strict=True):
        assert file.read_text() != old
    with pytest.raises(UserError, match="num_steps=3, but 5 steps are done"):
        run_pipeline(replace(cpt, stages=(replace(cpt.stages[0], num_steps=3),)))


def test_prompt_without_room_is_rejected_before_training(pipeline):
    with pytest.raises(UserError, match=r"'fire' takes \d+ tokens: with max_new_tokens=127"):
        run_pipeline(replace(pipeline, max_new_tokens=127))
    assert not Path(pipeline.stages[0].output).exists()


@pytest.mark.slow
def test_stage_started_too_early_is_rejected(pipeline):
    run_pipeline(replace(pipeline, stages=pipeline.stages[:2]))
    longer = replace(pipeline.stages[0], num_steps=6)
    with pytest.raises(UserError, match="was trained from .*cpt after 4 of its 6 steps: delete"):
        run_pipeline(replace(pipeline, stages=(longer, *pipeline.stages[1:])))


def test_stages_must_form_a_chain(pipeline):
    cpt, sft, _ = pipeline.stages
    with pytest.raises(UserError, match="the stage before it is .*cpt; leave init_from empty"):
        replace(pipeline, stages=(cpt, replace(sft, init_from="elsewhere")))
    with pytest.raises(UserError, match="must have different names"):
        replace(pipeline, stages=(cpt, replace(sft, output=cpt.output, init_from="")))
    with pytest.raises(UserError, match="stages is empty"):
        replace(pipeline, stages=())


def test_missing_questions_are_rejected_before_training(pipeline):
    with pytest.raises(UserError, match="file of questions does not exist"):
        run_pipeline(replace(pipeline, questions="nowhere.jsonl"))
    assert not Path(pipeline.stages[0].output).exists()


@pytest.mark.slow
def test_resumed_stage_rejects_another_reference(pipeline, tmp_path):
    cpt, _, dpo = pipeline.linked_stages()
    with pytest.raises(UserError, match="objective.loss=sigmoid needs init_from"):
        build_run(replace(dpo, init_from=""), make_mesh(dpo.mesh))
    mesh = make_mesh(cpt.mesh)
    fit(build_run(cpt, mesh))
    dpo = replace(dpo, init_from=cpt.output)
    fit(build_run(dpo, mesh))
    fit(build_run(replace(cpt, num_steps=5), mesh))
    with pytest.raises(UserError, match="reference model"):
        fit(build_run(replace(dpo, num_steps=6), mesh))
