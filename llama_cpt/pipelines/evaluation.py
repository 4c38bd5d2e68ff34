"""Evaluation of a pipeline's models: scores and sample answers, computed once per model."""

from collections.abc import Sequence
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from etils import epath

from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.config.schema import ChatConfig, TrainConfig
from llama_cpt.data.chat.conversations import Message
from llama_cpt.data.chat.template import ChatTemplate, load_chat_template
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.data.tokenizer.document_tokens import document_tokens
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.evaluation.bits_per_byte import TASK, heldout_texts, score_texts, text_settings
from llama_cpt.generation.decoder import load_decoder
from llama_cpt.generation.generate import generate
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.runtime.progress import Progress

BATCH = 64
"""Number of questions in a batch."""
MAX_CACHE_BYTES = 256 << 20
"""Maximum size of a file with the answers of a model."""


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
    if TASK in config.tasks:
        settings["window"] = _window(config)
    status = read_cache(status_file, "score the model again")
    if status.get("asked") != settings:
        if folder.exists():
            folder.rmtree()
        status = {"asked": settings, "done": []}
    done = status.get("done")
    if isinstance(done, list) and all(task in done for task in config.tasks):
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
    decoder = load_decoder(source, stage.architecture, mesh, stage.compute.dtype)
    settings: dict[str, Any] = {"model": model[:16], "tokenizer": tokenizer.fingerprint[:16]}
    limit = config.task_examples or None
    if TASK in config.tasks:
        texts = heldout_texts(config.stages[0].data.heldout, limit)
        around = document_tokens(tokenizer, stage.data.document_tokens).for_heldout
        score_texts(
            texts,
            decoder,
            tokenizer,
            mesh,
            folder,
            settings | text_settings(texts, _window(config)),
            context_id=around.begin[0],
        )
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


def _window(config: PipelineConfig) -> int:
    """Return the maximum number of tokens per window: the smallest sequence length of a stage."""
    return min(stage.data.sequence_length for stage in config.stages)


def _benchmarks(config: PipelineConfig) -> list[str]:
    return [name for name in config.tasks if name != TASK]


def render_prompts(
    questions: Sequence[str], config: TrainConfig, max_new_tokens: int
) -> tuple[list[list[int]], ChatTemplate, Tokenizer]:
    """Render the questions with the chat template of ``config``.

    Returns the tokens of each rendered question, the template and the tokenizer. Raises UserError
    if a question leaves no room for ``max_new_tokens`` in the context, or if the tokenizer has no
    chat tokens.
    """
    tokenizer = load_tokenizer(config.data.tokenizer)
    chat = config.data.chat or ChatConfig()
    template = load_chat_template(tokenizer, chat.template)
    prompts = [template.prompt([Message("user", text)]) for text in questions]
    for text, prompt in zip(questions, prompts, strict=True):
        if len(prompt) + max_new_tokens > config.architecture.context_length:
            raise UserError(
                f"{text[:40]!r} takes {len(prompt)} tokens: with max_new_tokens={max_new_tokens}, "
                f"it exceeds model.context_length={config.architecture.context_length}; shorten "
                "the prompt, or set a lower max_new_tokens."
            )
    return prompts, template, tokenizer


def sample_answers(
    questions: Sequence[str],
    source: str,
    config: TrainConfig,
    *,
    max_new_tokens: int,
    identity: str,
    cache: epath.Path,
) -> list[str]:
    """Return one greedy answer to each question, generated with the weights in ``source``.

    The architecture, tokenizer and mesh are taken from ``config``. If the file ``cache`` was
    written for equal prompts, settings and weights, the answers are read from the file. Otherwise
    the answers are generated and written to the file. ``identity`` identifies the weights.
    """
    prompts, template, tokenizer = render_prompts(questions, config, max_new_tokens)
    inputs = json.dumps([prompts, max_new_tokens, identity, config.compute.dtype])
    fingerprint = hashlib.sha256(inputs.encode()).hexdigest()
    cached = read_cache(cache, "generate the answers again")
    kept: Any = cached.get("answers")
    if cached.get("fingerprint") == fingerprint and _are_texts(kept, len(prompts)):
        return kept
    mesh = make_mesh(config.mesh.without_context)
    decoder = load_decoder(source, config.architecture, mesh, config.compute.dtype)
    answers: list[str] = []
    with Progress("answers", float(len(prompts)), "questions") as progress:
        for part in _batches(prompts):
            rows = generate(
                decoder,
                part,
                max_new_tokens=max_new_tokens,
                stop_ids=template.stop_ids,
                mesh=mesh,
            )
            answers += [tokenizer.decode(row).strip() for row in rows]
            progress.update(float(len(part)))
    cache.parent.mkdir(parents=True, exist_ok=True)
    content = {"fingerprint": fingerprint, "answers": answers}
    write_atomic(cache, json.dumps(content, ensure_ascii=False, indent=1).encode())
    return answers


def read_cache(file: epath.Path, purpose: str) -> dict[str, Any]:
    """Return the JSON object in ``file``, or an empty dict if the file does not exist."""
    if not file.exists():
        return {}
    return read_json_object(str(file), f"delete it to {purpose}", max_bytes=MAX_CACHE_BYTES)


def _are_texts(values: Any, count: int) -> bool:
    """Return whether ``values`` is a list of ``count`` strings."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, str) for value in values)
    )


def _batches(prompts: Sequence[list[int]]) -> list[Sequence[list[int]]]:
    return [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
