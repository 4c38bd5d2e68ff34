"""A pipeline travelled: every stage that is not done, an export, and a report after each."""

from collections.abc import Sequence
import json
import sys

from etils import epath

from llama_cpt.checkpoint.checkpoint import CHECKPOINTS_FOLDER, CheckpointManager
from llama_cpt.config.fields import to_dict
from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.config.schema import TrainConfig
from llama_cpt.evaluation.exact_match import Question, grade, read_questions
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.pipelines.benchmarks import check_tasks, run_benchmarks
from llama_cpt.pipelines.report import StageReport, read_stage, summary, write_report
from llama_cpt.pipelines.samples import render_prompts, sample_answers
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.files import write_atomic
from llama_cpt.runtime.output_folder import check_local
from llama_cpt.training.reference import model_identity
from llama_cpt.training.resume import check_resume
from llama_cpt.training.run import build_run
from llama_cpt.training.stop import Outcome
from llama_cpt.training.trainer import fit
from llama_cpt.weights.export import to_hf

BEFORE = "before"

Model = tuple[str, str, TrainConfig]
"""Its name, where its weights lie, the run that made it (``BEFORE``: that starts from it)."""


def run_pipeline(config: PipelineConfig) -> Outcome:
    """Do what is left of ``config``; a second call does nothing but write the report again.

    Raises UserError for whatever a user can mend; examination, prompts and the order of the stages
    first. One process: nothing here is shared out.
    """
    check_local("output", config.output)
    check_local("examination", config.questions)
    questions = read_questions(config.questions) if config.questions else ()
    asked = (*config.prompts, *(question.question for question in questions))
    stages = config.linked_stages()
    _check_order(stages)
    check_tasks(config)
    for stage in stages if asked else ():
        if epath.Path(stage.data.tokenizer).exists():
            render_prompts(asked, stage, config.max_new_tokens)
    first, names = stages[0], config.stage_names()
    models: list[Model] = [(BEFORE, first.init_from, first)] if first.init_from else []
    models += [(n, stage.output, stage) for n, stage in zip(names, stages, strict=True)]
    answers: dict[str, list[str]] = {}
    scores: list[str] = []
    for name, source, stage in models:
        if name != BEFORE and not _is_done(stage):
            print(f"\npipeline: {name} ({stage.output})", flush=True)
            if (outcome := fit(build_run(stage, make_mesh(stage.mesh)))) is not Outcome.FINISHED:
                return outcome
        answers[name] = []
        if asked or config.tasks or source == stages[-1].output:
            identity = model_identity(source, stage.model, stage.seed)
        if asked:
            answers[name] = sample_answers(
                asked,
                source,
                stage,
                max_new_tokens=config.max_new_tokens,
                identity=identity,
                kept=epath.Path(config.output) / "answers" / f"{name}.json",
            )
        if config.tasks:
            scores.append(run_benchmarks(name, source, stage, config, identity))
        if name == BEFORE:
            # Its numbers are in the first stage's.
            continue
        reports = [_reported(config, model, answers, questions) for model in models[: len(answers)]]
        write_report(config, reports, questions, scores)
    exported = _exported(config, stages[-1], identity)
    print(f"\n{summary(reports)}")
    report = epath.Path(config.output) / "report.md"
    print(f"\nreport: {report}; model: {exported}")
    return Outcome.FINISHED


def _exported(config: PipelineConfig, last: TrainConfig, identity: str) -> epath.Path:
    """The last stage's model, of ``identity``, for Hugging Face; another's export is replaced."""
    folder = epath.Path(config.output) / "exported"
    note = folder.with_name("exported.json")
    wanted = {"model": identity, "dtype": config.export_dtype}
    if folder.exists():
        if note.exists() and json.loads(note.read_text()) == wanted:
            return folder
        folder.rmtree()
    to_hf(last.output, str(folder), dtype=config.export_dtype)
    write_atomic(note, json.dumps(wanted).encode())
    return folder


def _reported(
    config: PipelineConfig,
    model: Model,
    answers: dict[str, list[str]],
    questions: tuple[Question, ...],
) -> StageReport:
    """What a model is worth: its run's numbers, its answers."""
    name, _, stage = model
    count = len(config.prompts)
    return read_stage(
        name,
        stage,
        before=name == BEFORE,
        samples=dict(zip(config.prompts, answers[name][:count], strict=True)),
        marks=grade(questions, answers[name][count:]),
    )


def _saved_step(stage: TrainConfig) -> int:
    """Steps that the stage's newest checkpoint has done, 0 where there is none."""
    place = epath.Path(stage.output) / CHECKPOINTS_FOLDER
    if not place.exists():
        return 0
    with CheckpointManager(str(place)) as checkpoints:
        return max(checkpoints.steps(), default=0)


def _is_done(stage: TrainConfig) -> bool:
    """Whether all steps were trained, with this config, and the last checkpoint is whole."""
    if _saved_step(stage) < stage.num_steps:
        return False
    with CheckpointManager(str(epath.Path(stage.output) / CHECKPOINTS_FOLDER)) as checkpoints:
        step = checkpoints.latest_verified()
        if step is None or step < stage.num_steps:
            return False
        saved = checkpoints.metadata(step)["config"]
    for warning in check_resume(saved, stage, steps_done=step):
        print(f"{stage.output}: {warning}", file=sys.stderr)
    return True


def _check_order(stages: Sequence[TrainConfig]) -> None:
    """Refuse a stage that began before the one that it starts from was done."""
    steps = [_saved_step(stage) for stage in stages]
    for earlier, done, later, begun in zip(stages, steps, stages[1:], steps[1:], strict=False):
        if begun and done < earlier.num_steps:
            raise UserError(
                f"{later.output} was trained from {earlier.output} after {done} of its "
                f"{earlier.num_steps} steps: delete {later.output}, or name another output for it."
            )


def describe_stages(config: PipelineConfig) -> str:
    """The stages in words."""
    return "\n".join(
        f"  {name}: {stage.num_steps:,} steps, objective "
        f"{to_dict(stage.objective).get('loss', 'next token')}, from {stage.init_from or 'random'}"
        for name, stage in zip(config.stage_names(), config.linked_stages(), strict=True)
    )
