"""A pipeline goes the whole road, goes on where it was, and tells of all of it in one report."""

from dataclasses import replace
import json
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
from llama_cpt.training.run import build_run
from llama_cpt.training.stop import Outcome
from llama_cpt.training.trainer import fit


@pytest.fixture
def pipeline(make_config, corpora, tmp_path, monkeypatch) -> PipelineConfig:
    """CPT, SFT and DPO of four steps each, on two devices, for which they compile sooner."""
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

    # A question in the template takes more than the corpora's rows.
    model = replace(make_config(tmp_path).model, context_length=128)

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
        output=str(tmp_path / "road"),
        stages=(cpt, sft, replace(dpo, objective=PreferenceConfig(loss="sigmoid"))),
        prompts=("fire", "火"),
        questions=str(examination),
        max_new_tokens=4,
        export_dtype="float32",
    )


def metrics(stage) -> list[dict]:
    return [json.loads(line) for line in (Path(stage.output) / "metrics.jsonl").open()]


def test_the_whole_road_and_again(pipeline, capsys):
    assert run_pipeline(pipeline) is Outcome.FINISHED
    road = Path(pipeline.output)
    report = (road / "report.md").read_text()
    assert "before" not in report  # It began with random weights.
    for told in ("| cpt |", "| sft |", "| dpo |", "rewards/margins", "## fire", "0 of 1", "10%"):
        assert told in report, told
    assert (road / "report.png").stat().st_size > 5000
    assert json.loads((road / "exported" / "config.json").read_text())["model_type"] == "llama"

    assert "chat_template.jinja" in {path.name for path in (road / "exported").iterdir()}
    settings = json.loads((road / "exported" / "generation_config.json").read_text())
    tokenizer = load_tokenizer(pipeline.stages[0].data.tokenizer)
    assert settings["eos_token_id"] == [tokenizer.special_id("<|eot_id|>"), tokenizer.eos_id]

    _, sft, dpo = pipeline.linked()
    assert sft.init_from == pipeline.stages[0].output and dpo.init_from == sft.output
    first = metrics(dpo)[1]
    assert first["train/loss"] == pytest.approx(0.693147, abs=1e-5)  # log 2 at the reference
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)

    shutil.rmtree(dpo.output)
    (road / "report.md").unlink()
    before = {stage.output: metrics(stage) for stage in pipeline.stages[:2]}
    capsys.readouterr()
    assert run_pipeline(pipeline) is Outcome.FINISHED
    told = capsys.readouterr().out
    assert "pipeline: dpo" in told and "pipeline: sft" not in told
    assert before == {stage.output: metrics(stage) for stage in pipeline.stages[:2]}
    assert (road / "report.md").read_text() == report


def test_tasks_stand_side_by_side_after_every_stage(pipeline):
    heldout = pipeline.stages[0].data.heldout
    assert heldout
    first = replace(pipeline, stages=pipeline.stages[:1], prompts=(), questions="", tasks=("bpb",))
    run_pipeline(first)
    road = Path(pipeline.output)
    assert "## Side by side" in (road / "report.md").read_text()
    scores = road / "scores" / "cpt" / "bpb.jsonl"
    before = scores.stat().st_mtime_ns
    run_pipeline(replace(first, stages=pipeline.stages[:2]))
    report = (road / "report.md").read_text()
    assert all(f"| bpb: {corpus.name} |" in report for corpus in heldout)
    assert "**sft** " in report and "(scores/differences.png)" in report
    assert "data:image/png" in (road / "scores" / "report.html").read_text()
    assert scores.stat().st_mtime_ns == before
    # Scores of weights that are no more are no scores.
    run_pipeline(replace(first, stages=(replace(pipeline.stages[0], num_steps=5),)))
    assert scores.stat().st_mtime_ns != before


def test_tasks_that_cannot_be_run_are_told_first(pipeline):
    pytest.importorskip("lm_eval", reason="the extra [eval] is not installed")
    with pytest.raises(UserError, match="tasks: humaneval runs code"):
        run_pipeline(replace(pipeline, tasks=("humaneval",)))
    assert not Path(pipeline.stages[0].output).exists()


def test_other_weights_are_asked_and_exported_anew(pipeline):
    cpt = replace(pipeline, stages=pipeline.stages[:1])
    run_pipeline(cpt)
    road = Path(pipeline.output)
    places = (road / "exported.json", road / "answers" / "cpt.json")
    before = [place.read_text() for place in places]
    run_pipeline(replace(cpt, stages=(replace(cpt.stages[0], num_steps=5),)))
    for old, place in zip(before, places, strict=True):
        assert place.read_text() != old
    with pytest.raises(UserError, match="num_steps=3, but 5 steps are done"):
        run_pipeline(replace(cpt, stages=(replace(cpt.stages[0], num_steps=3),)))


def test_a_prompt_that_leaves_no_room_is_told_first(pipeline):
    with pytest.raises(UserError, match=r"'fire' takes \d+ tokens: with max_new_tokens=127"):
        run_pipeline(replace(pipeline, max_new_tokens=127))
    assert not Path(pipeline.stages[0].output).exists()


def test_a_stage_begun_too_early_is_refused(pipeline):
    run_pipeline(replace(pipeline, stages=pipeline.stages[:2]))
    longer = replace(pipeline.stages[0], num_steps=6)
    with pytest.raises(UserError, match="was trained from .*cpt after 4 of its 6 steps: delete"):
        run_pipeline(replace(pipeline, stages=(longer, *pipeline.stages[1:])))


def test_stages_must_follow_one_another(pipeline):
    cpt, sft, _ = pipeline.stages
    with pytest.raises(UserError, match="the stage before it is .*cpt: leave init_from empty"):
        replace(pipeline, stages=(cpt, replace(sft, init_from="elsewhere")))
    with pytest.raises(UserError, match="give each its own output folder"):
        replace(pipeline, stages=(cpt, replace(sft, output=cpt.output, init_from="")))
    with pytest.raises(UserError, match="stages is empty"):
        replace(pipeline, stages=())


def test_a_missing_examination_is_told_before_any_training(pipeline):
    with pytest.raises(UserError, match="file of questions does not exist"):
        run_pipeline(replace(pipeline, questions="nowhere.jsonl"))
    assert not Path(pipeline.stages[0].output).exists()


def test_a_resumed_stage_keeps_its_reference(pipeline, tmp_path):
    cpt, _, dpo = pipeline.linked()
    with pytest.raises(UserError, match="objective.loss=sigmoid needs init_from"):
        build_run(replace(dpo, init_from=""), make_mesh(dpo.mesh))
    mesh = make_mesh(cpt.mesh)
    fit(build_run(cpt, mesh))
    dpo = replace(dpo, init_from=cpt.output)
    fit(build_run(dpo, mesh))
    fit(build_run(replace(cpt, num_steps=5), mesh))
    with pytest.raises(UserError, match="reference model"):
        fit(build_run(replace(dpo, num_steps=6), mesh))
