"""Execution of a pipeline: training of its stages, a report after each stage, and an export."""

from collections.abc import Sequence
from dataclasses import dataclass
import json
import logging

from etils import epath

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.run_folder import CHECKPOINTS_FOLDER
from llama_cpt.config.fields import to_dict
from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.config.schema import TrainConfig
from llama_cpt.evaluation.exact_match import Question, grade, read_questions
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.pipelines.evaluation import (
    check_tasks,
    render_prompts,
    run_benchmarks,
    sample_answers,
)
from llama_cpt.pipelines.report import StageReport, read_stage, summary, write_report
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.runtime.output_folder import check_local
from llama_cpt.training.evaluation_plan import run_tokens
from llama_cpt.training.first_state import EVALUATION_PENDING
from llama_cpt.training.reference import model_identity
from llama_cpt.training.resume import check_resume
from llama_cpt.training.run import build_run
from llama_cpt.training.stop import Outcome
from llama_cpt.training.trainer import fit
from llama_cpt.weights.export import to_hf

logger = logging.getLogger(__name__)

BEFORE = "before"
"""Name of the model from which the pipeline starts."""


@dataclass(frozen=True)
class PipelineModel:
    """A model of the pipeline: the initial model, or the result of a stage."""

    name: str
    source: str
    """Folder of the model's weights."""
    stage: TrainConfig
    """Config of the run that trains the model; for ``BEFORE``, the config of the first stage."""


def run_pipeline(config: PipelineConfig) -> Outcome:
    """Run all stages that are not complete, write the report and export the last model.

    If all stages are complete, nothing is trained, and the report is written again. Returns the
    outcome of the first stage that stops early, otherwise ``Outcome.FINISHED``. The pipeline runs
    in a single process. Raises UserError if the config or an input file has a mistake. Questions,
    prompts, tasks and the order of the stages are checked before any training.
    """
    check_local("output", config.output)
    check_local("questions", config.questions)
    questions = read_questions(config.questions) if config.questions else ()
    texts = (*config.prompts, *(question.question for question in questions))
    stages = config.linked_stages()
    _check_stages(config, stages, texts)
    models = _models(config, stages)
    answers: dict[str, list[str]] = {}
    scores: list[str] = []
    for model in models:
        name, stage = model.name, model.stage
        if name != BEFORE and not _is_done(stage):
            logger.info(f"pipeline: {name} ({stage.output})")
            run = build_run(stage, make_mesh(stage.mesh), limit_tokens=min(map(run_tokens, stages)))
            if (outcome := fit(run)) is not Outcome.FINISHED:
                return outcome
        answers[name] = []
        # Computing the identity reads all weights, so it is computed only if it is needed.
        if texts or config.tasks or model.source == stages[-1].output:
            identity = model_identity(model.source, stage.architecture, stage.seed)
        if texts:
            answers[name] = sample_answers(
                texts,
                model.source,
                stage,
                max_new_tokens=config.max_new_tokens,
                identity=identity,
                cache=epath.Path(config.output) / "answers" / f"{name}.json",
            )
        if config.tasks:
            scores.append(run_benchmarks(name, model.source, stage, config, identity))
        if name == BEFORE:
            # The losses of this model are in the metrics of the first stage, which has not run yet.
            continue
        reports = [_report(config, done, answers, questions) for done in models[: len(answers)]]
        write_report(config, reports, questions, scores)
    exported = _export(config, stages[-1], identity)
    print(f"\n{summary(reports)}")
    report = epath.Path(config.output) / "report.md"
    print(f"\nreport: {report}; model: {exported}")
    return Outcome.FINISHED


def _check_stages(
    config: PipelineConfig, stages: Sequence[TrainConfig], texts: Sequence[str]
) -> None:
    """Raise UserError for mistakes that can be found before any training."""
    _check_order(stages)
    check_tasks(config)
    for stage in stages if texts else ():
        if epath.Path(stage.data.tokenizer).exists():
            render_prompts(texts, stage, config.max_new_tokens)


def _models(config: PipelineConfig, stages: Sequence[TrainConfig]) -> list[PipelineModel]:
    """Return each stage's model, after the initial model if the first stage has ``init_from``."""
    first = stages[0]
    before = [PipelineModel(BEFORE, first.init_from, first)] if first.init_from else []
    names = zip(config.stage_names(), stages, strict=True)
    return before + [PipelineModel(name, stage.output, stage) for name, stage in names]


def _export(config: PipelineConfig, last: TrainConfig, identity: str) -> epath.Path:
    """Export the model of the last stage and return the folder of the export.

    ``identity`` is the result of ``model_identity``. An existing export with a different identity
    or dtype is replaced.
    """
    folder = epath.Path(config.output) / "exported"
    status_file = folder.with_name("exported.json")
    status = {"model": identity, "dtype": config.export_dtype}
    if folder.exists():
        if status_file.exists() and status == read_json_object(
            str(status_file), "delete it to export the model again"
        ):
            return folder
        folder.rmtree()
    to_hf(last.output, str(folder), dtype=config.export_dtype)
    write_atomic(status_file, json.dumps(status).encode())
    return folder


def _report(
    config: PipelineConfig,
    model: PipelineModel,
    answers: dict[str, list[str]],
    questions: tuple[Question, ...],
) -> StageReport:
    """Return the report of ``model``: the metrics of its run, its answers and their accuracy."""
    count = len(config.prompts)
    return read_stage(
        model.name,
        model.stage,
        before=model.name == BEFORE,
        samples=dict(zip(config.prompts, answers[model.name][:count], strict=True)),
        accuracies=grade(questions, answers[model.name][count:]),
    )


def _saved_step(stage: TrainConfig) -> int:
    """Return the step of the newest checkpoint of the stage, or 0 if it has no checkpoint."""
    folder = epath.Path(stage.output) / CHECKPOINTS_FOLDER
    if not folder.exists():
        return 0
    with CheckpointManager(str(folder)) as checkpoints:
        return max(checkpoints.steps(), default=0)


def _is_done(stage: TrainConfig) -> bool:
    """Return whether the stage has an intact, evaluated checkpoint at its last step.

    Raises UserError if the stage was trained with an incompatible config.
    """
    if _saved_step(stage) < stage.num_steps:
        return False
    with CheckpointManager(str(epath.Path(stage.output) / CHECKPOINTS_FOLDER)) as checkpoints:
        step = checkpoints.latest_verified()
        if step is None or step < stage.num_steps:
            return False
        saved = checkpoints.metadata(step)
    if EVALUATION_PENDING in saved:
        return False
    for warning in check_resume(saved["config"], stage, steps_done=step):
        logger.warning(f"{stage.output}: {warning}")
    return True


def _check_order(stages: Sequence[TrainConfig]) -> None:
    """Raise UserError if a stage was started before the previous stage was complete."""
    steps = [_saved_step(stage) for stage in stages]
    for earlier, done, later, started in zip(stages, steps, stages[1:], steps[1:], strict=False):
        if started and done < earlier.num_steps:
            raise UserError(
                f"{later.output} was trained from {earlier.output} after {done} of its "
                f"{earlier.num_steps} steps: delete {later.output}, or set another output for it."
            )


def describe_stages(config: PipelineConfig) -> str:
    """Return one line per stage with its name, number of steps, objective and initial weights."""
    return "\n".join(
        f"  {name}: {stage.num_steps:,} steps, objective "
        f"{to_dict(stage.objective).get('loss', 'next token')}, from {stage.init_from or 'random'}"
        for name, stage in zip(config.stage_names(), config.linked_stages(), strict=True)
    )
