"""The command that evaluates and compares models: ``python -m llama_cpt.evaluate MODEL ...``."""

import argparse
from collections.abc import Generator
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
    text_settings,
    write_no_counterpart,
)
from llama_cpt.evaluation.comparison.compare import compare
from llama_cpt.evaluation.comparison.page import terminal_table, write_comparison
from llama_cpt.evaluation.judge.answers import ChatModel, make_answerer
from llama_cpt.evaluation.judge.session import (
    PERSON,
    Candidate,
    JudgeOptions,
    check_conversations,
    judge_conversations,
)
from llama_cpt.evaluation.named_models import LoadedModel, ModelOptions, ModelSpec
from llama_cpt.evaluation.sandbox.sandbox import ENFORCED
from llama_cpt.evaluation.scores import write_summary
from llama_cpt.runtime.compile_time import exclude_compilation
from llama_cpt.runtime.distributed import (
    distributed_session,
    is_primary,
    process_count,
    run_on_primary,
)
from llama_cpt.runtime.errors import UsageError, UserError, one_line_errors
from llama_cpt.runtime.http_client import KEY_VARIABLE
from llama_cpt.runtime.interrupt import end_on_interrupt
from llama_cpt.runtime.literal_paths import validate_path
from llama_cpt.runtime.output_folder import check_local, check_writable, file_lock


def main(arguments: list[str]) -> int:
    """Evaluate every model in ``arguments`` on every task and return the exit status."""
    options = _parse(arguments)
    # Without this, lm-evaluation-harness shows a progress bar for each part of a benchmark.
    os.environ.setdefault("TQDM_DISABLE", "1")
    exclude_compilation()
    with distributed_session():
        _evaluate_all(options)
    return 0


def _evaluate_all(options: argparse.Namespace) -> None:
    check_local("--output", options.output)
    files = options.data, options.tokenizer, options.no_counterpart, options.conversations
    for path in (*options.models, *files, options.haystack):
        validate_path(path)
    if is_primary():
        check_writable(options.output)
    sources = named_models.parse_model_names(options.models)
    judging = _judge_options(options) if options.conversations else None
    if judging:
        if process_count() > 1:
            raise UserError("--conversations runs in one process; start evaluate once for it.")
        check_conversations(list(sources), judging)
    names = _tasks(options)
    texts = _texts(options) if TASK in names else []
    # Check the models first, because loading a benchmark can download it.
    requirements = ModelOptions(options.tokenizer, options.chat_template, judging is not None)
    specs = {
        label: named_models.check_model(label, source, requirements)
        for label, source in sources.items()
    }
    benchmarks = _benchmarks(options, [name for name in names if name != TASK])
    suite = _suite(options)
    output = Path(options.output)
    candidates = (
        [_candidate(label, spec, output, judging) for label, spec in specs.items()]
        if judging
        else []
    )
    if names or suite:
        stopped = f"the scores so far are in {options.output}; run the same command to continue."
        with end_on_interrupt(stopped):
            _score_all(specs, texts, benchmarks, suite, options)
    if judging:
        judge_conversations((candidates[0], candidates[1]), output, judging)


def _judge_options(options: argparse.Namespace) -> JudgeOptions:
    return JudgeOptions(
        prompts=options.conversations,
        judge=options.judge,
        model=options.judge_model,
        timeout_seconds=options.judge_timeout,
        max_prompts=options.prompts,
        max_answer_tokens=options.answer_tokens,
    )


def _score_all(
    specs: dict[str, ModelSpec],
    texts: list[HeldoutText],
    benchmarks: list[Any],
    suite: Any,
    options: argparse.Namespace,
) -> None:
    """Score the models one at a time, and print the scores and a comparison of the models."""
    heldout_of = load_config(options.heldout_of).data if options.heldout_of else None
    summaries, window = [], named_models.scoring_window(specs, heldout_of)
    for label, spec in specs.items():
        folder = Path(options.output) / label
        with _locked(folder) if is_primary() else contextlib.nullcontext():
            model = named_models.load_model(spec, folder)
            if texts:
                _score_texts(model, texts, window, options.no_counterpart)
            if benchmarks:
                _score_benchmarks(model, benchmarks, options)
            if suite:
                from llama_cpt.evaluation.chat_suite.suite import score_suite

                score_suite(model, suite)
            summaries.append(run_on_primary(partial(write_summary, folder), "summary"))
    run_on_primary(partial(_report, summaries, options.output, suite=bool(suite)), "report")


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Context manager that creates ``folder`` and locks it against other evaluations.

    Raises UserError if another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{folder}: another process scores there; wait for it, or set another --output."
    with file_lock(epath.Path(folder / ".lock"), busy, wait=False):
        yield


def _report(summaries: list[dict[str, Any]], output: str, *, suite: bool) -> None:
    """Print a table of the scores; with several models, also write a report."""
    folders = [str(Path(output) / summary["model"]) for summary in summaries]
    several = len(summaries) > 1
    others = True
    if suite:
        from llama_cpt.evaluation.chat_suite.table import has_other_tasks, suite_table

        print(suite_table([Path(folder) for folder in folders]))
        others = any(map(has_other_tasks, summaries))
    comparison = write_comparison(folders, output) if several else compare(folders)
    # For a single model, the table of the suite has the scores of the suite.
    if several or others:
        print(terminal_table(comparison, summaries))
    if several:
        print(f"\n{Path(output) / 'report.html'}")


def _tasks(options: argparse.Namespace) -> list[str]:
    """Return the names of the tasks, without duplicates.

    Raises UserError if a task cannot be run, and UsageError if an option is invalid.
    """
    names = list(dict.fromkeys(name.strip() for name in options.tasks.split(",") if name.strip()))
    if not names and not options.conversations and not options.suite:
        raise UsageError("nothing to do: set --tasks, --suite, or --conversations.")
    for name, value, least in (("--limit", options.limit, 1), ("--shots", options.shots, 0)):
        if value is not None and value < least:
            raise UsageError(f"{name}={value} must be at least {least}.")
    if options.no_counterpart and TASK not in names:
        raise UsageError(f"--no-counterpart selects documents of {TASK}; add {TASK} to --tasks.")
    benchmarks = [name for name in names if name != TASK]
    if not benchmarks and not options.suite:
        return names
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "benchmarks and --suite need lm-evaluation-harness: pip install -e '.[eval]'."
        )
    from llama_cpt.evaluation.benchmarks import check_name, runs_code

    for name in benchmarks:
        check_name(name, allow_code=options.allow_task_code)
        if runs_code(name) and not options.run_generated_code:
            raise UserError(
                f"{name} runs code that the model generates ({ENFORCED}); allow it with "
                "--run-generated-code."
            )
    return names


def _texts(options: argparse.Namespace) -> list[HeldoutText]:
    corpora = [_corpus(one) for one in options.heldout]
    if options.heldout_of:
        corpora += load_config(options.heldout_of).data.heldout
    if not corpora:
        raise UsageError(f"{TASK} needs text: set --heldout NAME=GLOB or --heldout-of CONFIG.")
    texts = heldout_texts(corpora, options.limit)
    if options.no_counterpart:
        require_known(read_source_names(options.no_counterpart), texts, options.no_counterpart)
    return texts


def _corpus(argument: str) -> CorpusConfig:
    name, equals, source = argument.partition("=")
    if not (name and equals and source):
        raise UsageError(f"--heldout {argument}: must be NAME=GLOB.")
    return CorpusConfig(name, source)


def _benchmarks(options: argparse.Namespace, names: list[str]) -> list[Any]:
    if not names:
        return []
    from llama_cpt.evaluation.benchmarks import load_benchmark

    code = options.allow_task_code
    return [load_benchmark(name, options.data, options.shots, allow_code=code) for name in names]


def _suite(options: argparse.Namespace) -> Any:
    """Return the prompts of ``--suite``, or None if the option is not set."""
    if not options.suite:
        return None
    from llama_cpt.evaluation.chat_suite.suite import load_suite

    return load_suite(
        limit=options.limit, haystack=options.haystack, longest=options.haystack_tokens
    )


def _candidate(label: str, spec: ModelSpec, output: Path, options: JudgeOptions) -> Candidate:
    """Return a Candidate that loads the model's weights when an answer must be generated."""

    def load_chat_model() -> ChatModel:
        model = named_models.load_model(spec, output / label)
        template, tokenizer = model.prompts.template, model.prompts.tokenizer
        assert template is not None, "check_model requires a template for conversations"
        return ChatModel(model.decoder, tokenizer, model.mesh, template, model.prompts.stop_ids)

    tokens = options.max_answer_tokens
    prompts = {"prompts": spec.prompts.fingerprint[:16]}
    model_id = json.dumps(named_models.model_settings(spec) | prompts | {"tokens": tokens})
    return Candidate(label, model_id, make_answerer(load_chat_model, tokens))


def _score_texts(
    model: LoadedModel, texts: list[HeldoutText], window: int, no_counterpart: str
) -> None:
    settings = model.identity | text_settings(texts, window)
    score_texts(
        texts,
        model.decoder,
        model.prompts.tokenizer,
        model.mesh,
        model.folder,
        settings,
        context_id=model.prompts.document_tokens.for_heldout.begin[0],
    )
    if no_counterpart and is_primary():
        write_no_counterpart(model.folder, read_source_names(no_counterpart), settings)


def _score_benchmarks(
    model: LoadedModel, benchmarks: list[Any], options: argparse.Namespace
) -> None:
    from llama_cpt.evaluation.harness import HarnessModel
    from llama_cpt.evaluation.questions import answer_questions, make_questions

    prompts = model.prompts
    harnessed = HarnessModel(
        model.decoder, prompts.tokenizer, model.mesh, prompts.template, prompts.stop_ids
    )
    chat = harnessed if options.chat_template else None
    settings = model.identity | {"prompts": prompts.fingerprint[:16]}
    for benchmark in benchmarks:
        questions = make_questions(benchmark, chat=chat, limit=options.limit)
        answer_questions(questions, harnessed, model.folder, settings)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llama_cpt.evaluate",
        description="Compare models on languages and benchmarks, example by example.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="a Hugging Face or run folder, or NAME=FOLDER")
    add("--tasks", default="", metavar="NAME,...", help=f"benchmarks, {TASK}, task files *.yaml")
    add("--output", required=True, metavar="DIR", help="scores are written to DIR/MODEL/TASK.jsonl")
    add("--tokenizer", default="", help="tokenizer for a MODEL that has none")
    message = "maximum number of examples per task; for bpb, of documents per corpus"
    add("--limit", type=int, metavar="N", help=message)
    _add_benchmark_arguments(parser)
    _add_text_arguments(parser)
    _add_suite_arguments(parser)
    _add_conversation_arguments(parser)
    return parser.parse_args(arguments)


def _add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("benchmarks").add_argument
    message = "folder of benchmarks (default: the Hugging Face hub)"
    add("--data", default="", metavar="DIR", help=message)
    add("--shots", type=int, metavar="N", help="worked examples before each question")
    add("--chat-template", action="store_true", help="use the model's chat template")
    message = f"allow benchmarks that run code from the model, within limits: {ENFORCED}"
    add("--run-generated-code", action="store_true", help=message)
    message = "allow task files that contain Python code, such as !function"
    add("--allow-task-code", action="store_true", help=message)


def _add_text_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(f"held-out text for {TASK}").add_argument
    message = "a corpus of documents; may be repeated"
    add("--heldout", action="append", default=[], metavar="NAME=GLOB", help=message)
    message = "the held-out corpora of a training config"
    add("--heldout-of", default="", metavar="CONFIG", help=message)
    message = f"sources of the documents of {NO_COUNTERPART}"
    add("--no-counterpart", default="", metavar="FILE", help=message)


def _add_suite_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("chat suite").add_argument
    message = "instructions, language of the answer, refusals, long-context recall"
    add("--suite", default="", choices=["chat"], help=message)
    message = "text in which the recall hides a number (default: a text of the package)"
    add("--haystack", default="", metavar="FILE", help=message)
    message = "longest prompt of the recall (default: the model's context)"
    add("--haystack-tokens", type=int, metavar="N", help=message)


def _add_conversation_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "conversations", "Blind comparison of two models' answers, in both orders."
    )
    add = group.add_argument
    message = "prompts in any chat format; requires a single process"
    add("--conversations", default="", metavar="FILE", help=message)
    message = f"an OpenAI-compatible endpoint (key: ${KEY_VARIABLE}), or `person`: you"
    add("--judge", default=PERSON, metavar="URL|person", help=message)
    add("--judge-model", default="", metavar="NAME", help="name of the model at URL")
    message = "maximum time for one reply (default 60)"
    add("--judge-timeout", type=float, default=60.0, metavar="SECONDS", help=message)
    message = "number of prompts, spread over FILE (default 100)"
    add("--prompts", type=int, default=100, metavar="N", help=message)
    message = "maximum length of an answer (default 512)"
    add("--answer-tokens", type=int, default=512, metavar="N", help=message)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
