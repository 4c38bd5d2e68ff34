"""The command that compares models: ``python -m llama_cpt.evaluate MODEL [MODEL ...]``."""

import argparse
from collections.abc import Iterator
import contextlib
from functools import partial
import importlib.util
import json
import os
from pathlib import Path
import sys
from typing import Any

from etils import epath

from llama_cpt.config.loading import load_config
from llama_cpt.config.schema import CorpusConfig
from llama_cpt.evaluation import named_models
from llama_cpt.evaluation.bits_per_byte import (
    NO_COUNTERPART,
    TASK,
    HeldoutText,
    heldout_texts,
    read_source_names,
    require_known,
    score_texts,
    text_fingerprint,
    write_no_counterpart,
)
from llama_cpt.evaluation.comparison.page import write_comparison
from llama_cpt.evaluation.comparison.text import terminal_lines
from llama_cpt.evaluation.judge.answers import ChatModel, make_answerer
from llama_cpt.evaluation.judge.session import (
    Candidate,
    add_conversation_arguments,
    check_conversations,
    judge_conversations,
)
from llama_cpt.evaluation.named_models import LoadedModel, ModelSpec
from llama_cpt.evaluation.sandbox.sandbox import ENFORCED
from llama_cpt.evaluation.summary import table, write_summary
from llama_cpt.runtime.distributed import (
    distributed_session,
    is_primary,
    process_count,
    run_on_primary,
)
from llama_cpt.runtime.errors import UsageError, UserError, one_line_errors
from llama_cpt.runtime.output_folder import check_local, check_writable, file_lock


def main(arguments: list[str]) -> int:
    """Evaluate each model on each task; the exit status."""
    options = _parse(arguments)
    # The harness shows a bar for every part of a benchmark.
    os.environ.setdefault("TQDM_DISABLE", "1")
    with distributed_session():
        _compare(options)
    return 0


def _compare(options: argparse.Namespace) -> None:
    check_local("--output", options.output)
    if is_primary():
        check_writable(options.output)
    sources = named_models.parse_model_names(options.models)
    if options.conversations:
        if process_count() > 1:
            raise UserError("--conversations is one process's work: start evaluate once for them.")
        check_conversations(list(sources), options)
    names = _tasks(options)
    texts = _texts(options) if TASK in names else []
    # Before the benchmarks, which may be fetched from the hub.
    given = {
        label: named_models.check_model(label, source, options) for label, source in sources.items()
    }
    benchmarks = _benchmarks(options, [name for name in names if name != TASK])
    contestants = ()
    if options.conversations:
        contestants = tuple(_contestant(label, one, options) for label, one in given.items())
    if names:
        _score_all(given, texts, benchmarks, options)
    if contestants:
        judge_conversations(contestants, Path(options.output), options)


def _score_all(
    models: dict[str, ModelSpec],
    texts: list[HeldoutText],
    benchmarks: list[Any],
    options: argparse.Namespace,
) -> None:
    """Score one model after the other; several are then compared with the first."""
    summaries = []
    for label, one in models.items():
        folder = Path(options.output) / label
        with _alone_in(folder) if is_primary() else contextlib.nullcontext():
            _evaluate(named_models.load_model(one, folder), texts, benchmarks, options)
            summaries.append(run_on_primary(partial(write_summary, folder), "summary"))
    run_on_primary(partial(_report, summaries, options.output), "report")


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """``folder``, made where it is not there, is no other command's."""
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{folder}: another process scores there; wait for it, or set another --output."
    with file_lock(epath.Path(folder / ".lock"), busy, wait=False):
        yield


def _report(summaries: list[dict[str, Any]], output: str) -> None:
    """Print the scores; compare several models with the first."""
    rows = table(summaries)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    if len(summaries) > 1:
        folders = [str(Path(output) / summary["model"]) for summary in summaries]
        print(f"\n{terminal_lines(write_comparison(folders, output))}")
        print(f"\n{Path(output) / 'report.html'}")


def _tasks(options: argparse.Namespace) -> list[str]:
    """The names asked for; raises UserError for what could not be run, before anything is."""
    names = list(dict.fromkeys(name.strip() for name in options.tasks.split(",") if name.strip()))
    if not names and not options.conversations:
        raise UsageError("nothing to do: name tasks with --tasks, or a file with --conversations.")
    for name, value in (("--limit", options.limit), ("--shots", options.shots)):
        if value is not None and value < (name == "--limit"):
            raise UsageError(f"{name}={value} is too few.")
    if options.no_counterpart and TASK not in names:
        raise UsageError(f"--no-counterpart sets documents of {TASK} apart: add it to --tasks.")
    benchmarks = [name for name in names if name != TASK]
    if not benchmarks:
        return names
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("benchmarks need lm-evaluation-harness: pip install -e '.[eval]'.")
    from llama_cpt.evaluation.benchmarks import check_name, runs_code

    for name in benchmarks:
        check_name(name)
        if runs_code(name) and not options.run_generated_code:
            raise UserError(
                f"{name} runs code that the model writes ({ENFORCED}): allow it with "
                "--run-generated-code."
            )
    return names


def _texts(options: argparse.Namespace) -> list[HeldoutText]:
    corpora = [_corpus(one) for one in options.heldout]
    if options.heldout_of:
        corpora += load_config(options.heldout_of).data.heldout
    if not corpora:
        raise UsageError(f"{TASK} needs text: give --heldout NAME=GLOB or --heldout-of CONFIG.")
    texts = heldout_texts(corpora, options.limit)
    if options.no_counterpart:
        require_known(read_source_names(options.no_counterpart), texts, options.no_counterpart)
    return texts


def _corpus(given: str) -> CorpusConfig:
    name, equals, place = given.partition("=")
    if not (name and equals and place):
        raise UsageError(f"--heldout {given}: give it as NAME=GLOB.")
    return CorpusConfig(name, place)


def _benchmarks(options: argparse.Namespace, names: list[str]) -> list[Any]:
    if not names:
        return []
    from llama_cpt.evaluation.benchmarks import load_benchmark

    return [load_benchmark(name, options.data, options.shots) for name in names]


def _contestant(label: str, given: ModelSpec, options: argparse.Namespace) -> Candidate:
    """The model as one that answers; its weights are loaded if an answer is missing."""

    def load_talker() -> ChatModel:
        model = named_models.load_model(given, Path(options.output) / label)
        return ChatModel(model.decoder, model.tokenizer, model.mesh, model.template)

    made_by = json.dumps(named_models.model_settings(given) | {"tokens": options.answer_tokens})
    return Candidate(label, made_by, make_answerer(load_talker, options.answer_tokens))


def _evaluate(
    model: LoadedModel, texts: list[HeldoutText], benchmarks: list[Any], options: argparse.Namespace
) -> None:
    if texts:
        _score_texts(model, texts, options.no_counterpart)
    if benchmarks:
        _ask(model, benchmarks, options)


def _score_texts(model: LoadedModel, texts: list[HeldoutText], no_counterpart: str) -> None:
    settings = model.identity | {"texts": text_fingerprint(texts)}
    score_texts(texts, model.decoder, model.tokenizer, model.mesh, model.folder, settings)
    if no_counterpart and is_primary():
        write_no_counterpart(model.folder, read_source_names(no_counterpart), settings)


def _ask(model: LoadedModel, benchmarks: list[Any], options: argparse.Namespace) -> None:
    from llama_cpt.evaluation.harness import HarnessModel
    from llama_cpt.evaluation.questions import answer_questions, make_questions

    harnessed = HarnessModel(model.decoder, model.tokenizer, model.mesh, model.template)
    chat = harnessed if options.chat_template else None
    for benchmark in benchmarks:
        questions = make_questions(benchmark, chat=chat, limit=options.limit)
        answer_questions(questions, harnessed, model.folder, model.identity)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llama_cpt.evaluate",
        description="Compare models over languages and benchmarks, example by example.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="a Hugging Face or run folder, or NAME=FOLDER")
    add("--tasks", default="", metavar="NAME,...", help=f"benchmarks, {TASK}, files *.yaml")
    add("--output", required=True, metavar="DIR", help="scores go to DIR/MODEL/TASK.jsonl")
    add("--data", default="", metavar="DIR", help="benchmarks on disk; without it, the hub")
    add("--limit", type=int, metavar="N", help="examples of each part of a task, at most")
    add("--shots", type=int, metavar="N", help="worked examples before each question")
    add("--chat-template", action="store_true", help="ask in the model's chat template")
    add("--run-generated-code", action="store_true", help=f"within limits: {ENFORCED}")
    add("--heldout", action="append", default=[], metavar="NAME=GLOB", help=f"text for {TASK}")
    add("--heldout-of", default="", metavar="CONFIG", help="the same, of a config")
    add(
        "--no-counterpart",
        default="",
        metavar="FILE",
        help=f"sources that {NO_COUNTERPART} is made of",
    )
    add("--tokenizer", default="", help="where MODEL has none of its own")
    add_conversation_arguments(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
