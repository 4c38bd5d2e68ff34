"""Benchmark scores of a pipeline's models. The scores are computed once per model."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from etils import epath

from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.config.schema import TrainConfig
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.evaluation.bits_per_byte import TASK, heldout_texts, score_texts, text_fingerprint
from llama_cpt.generation.load_decoder import load_decoder
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.files import write_atomic


def check_tasks(config: PipelineConfig) -> None:
    """Raise UserError if a benchmark of the pipeline cannot run. Call this before any training."""
    if TASK in config.tasks and not config.stages[0].data.heldout:
        raise UserError(
            f"tasks: {TASK} scores stages[0].data.heldout, which is empty; add a corpus."
        )
    if not (benchmarks := _benchmarks(config)):
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            f"tasks: {', '.join(benchmarks)} need lm-evaluation-harness; run: pip install "
            f"-e '.[eval]', or keep only {TASK}."
        )
    from llama_cpt.evaluation.benchmarks import check_name, runs_code

    for name in benchmarks:
        check_name(name)
        if runs_code(name):
            raise UserError(
                f"tasks: {name} runs code that the model writes; run it with llama_cpt.evaluate."
            )


def run_benchmarks(
    name: str, source: str, stage: TrainConfig, config: PipelineConfig, model: str
) -> str:
    """Score the weights in ``source`` on every task, and return the folder of the scores.

    ``model`` is the result of ``model_identity``. The architecture, tokenizer and mesh are those of
    ``stage``. Existing scores of the same weights and settings are reused. All other scores in the
    folder are deleted.
    """
    folder = epath.Path(config.output) / "scores" / name
    status_file = folder.with_name(f"{name}.json")
    settings = {"model": model, "examples": config.task_examples, "dtype": stage.compute.dtype}
    status = json.loads(status_file.read_text()) if status_file.exists() else {}
    if status.get("asked") != settings:
        if folder.exists():
            folder.rmtree()
        status = {"asked": settings, "done": []}
    if set(config.tasks) <= set(status["done"]):
        return str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Write the status before the scores, so that scores of an interrupted run can be identified.
    write_atomic(status_file, json.dumps(status).encode())
    _score(source, stage, config, Path(folder), model)
    write_atomic(status_file, json.dumps(status | {"done": list(config.tasks)}).encode())
    return str(folder)


def _score(
    source: str, stage: TrainConfig, config: PipelineConfig, folder: Path, model: str
) -> None:
    tokenizer = load_tokenizer(stage.data.tokenizer)
    mesh = make_mesh(stage.mesh.without_context)
    decoder = load_decoder(source, stage.model, mesh, stage.compute.dtype)
    settings = {"model": model[:16], "tokenizer": tokenizer.fingerprint[:16]}
    limit = config.task_examples or None
    if TASK in config.tasks:
        texts = heldout_texts(config.stages[0].data.heldout, limit)
        bpb_settings: dict[str, Any] = settings | {"texts": text_fingerprint(texts)}
        score_texts(texts, decoder, tokenizer, mesh, folder, bpb_settings)
    if not (benchmarks := _benchmarks(config)):
        return
    from llama_cpt.evaluation.benchmarks import load_benchmark
    from llama_cpt.evaluation.harness import HarnessModel
    from llama_cpt.evaluation.questions import answer_questions, make_questions

    # No chat template is used, so that base models and chat models get the same prompts.
    harness_model = HarnessModel(decoder, tokenizer, mesh, None)
    for name in benchmarks:
        benchmark = load_benchmark(name, config.benchmarks, None)
        questions = make_questions(benchmark, chat=None, limit=limit)
        answer_questions(questions, harness_model, folder, settings)


def _benchmarks(config: PipelineConfig) -> list[str]:
    return [name for name in config.tasks if name != TASK]
