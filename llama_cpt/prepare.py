"""The command that converts corpora to token rows: ``python -m llama_cpt.prepare CONFIG``."""

import argparse
from collections import Counter
from functools import partial
import logging
import sys

from etils import epath
import jax
import numpy as np

from llama_cpt.config.loading import config_parser, load_config, parse_arguments
from llama_cpt.config.schema import TrainConfig
from llama_cpt.corpus_report.drops import select_dropped
from llama_cpt.data.batch import TokenBatch
from llama_cpt.data.inspect_rows import packed_row_as_text, row_as_text
from llama_cpt.data.loader import read_batch
from llama_cpt.data.mixture import Mixture, build_mixture
from llama_cpt.data.prepare.corpora import (
    PreparedCorpora,
    WriteAll,
    open_heldout,
    open_rows,
    prepare,
)
from llama_cpt.data.prepare.dropped import DUPLICATE, OVERLAP, check_no_dropped
from llama_cpt.data.rows import DOCUMENT_START, Manifest
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.errors import UsageError, UserError, one_line_errors
from llama_cpt.runtime.extras import require_packages
from llama_cpt.runtime.metrics import FILE, read_lines
from llama_cpt.runtime.output_folder import check_writable
from llama_cpt.runtime.tables import aligned_table
from llama_cpt.runtime.untrusted_text import one_line, printable
from llama_cpt.training.evaluation_plan import plan_evaluations, seconds_per_evaluation
from llama_cpt.weights.initial_model import with_model

logger = logging.getLogger(__name__)

_NOUNS = {
    "documents": "documents",
    "conversations": "conversations",
    "preferences": "preferences",
    "unpaired": "labeled answers or pairs",
}


def _parser() -> argparse.ArgumentParser:
    parser = config_parser(
        "prepare",
        description="Convert the config's documents or chats to token rows, on all cores. Finished "
        "parts are not repeated. Prints the sizes of the corpora and for how many steps they "
        "suffice at the config's ALMR, and the cost of held-out evaluation.",
        epilog="Every field of the config is an option; `CONFIG --help` lists them. Options after "
        "`--` are for Beam: `CONFIG --runner beam -- --runner DataflowRunner ...`.",
    )
    parser.add_argument(
        "--inspect",
        type=_count,
        default=0,
        metavar="N",
        help="print the first N rows of the run, decoded",
    )
    parser.add_argument(
        "--workers", type=_count, metavar="N", help="number of processes (default: all cores)"
    )
    parser.add_argument(
        "--runner",
        choices=("local", "beam"),
        default="local",
        help="this machine, or Apache Beam: Dataflow, Flink, Spark (default: local)",
    )
    report = parser.add_argument_group("report on the corpora")
    report.add_argument(
        "--report",
        action="store_true",
        help="write a page on the corpora to the folder data.prepared, and prepare nothing",
    )
    report.add_argument(
        "--eval-data",
        default="",
        metavar="FOLDER",
        help="also compare the corpora with the benchmarks in this folder, which is the folder of "
        "evaluate --data",
    )
    report.add_argument(
        "--drop-overlap",
        action="store_true",
        help="leave out documents that contain held-out text or a question of the benchmarks",
    )
    report.add_argument(
        "--drop-duplicates",
        action="store_true",
        help="leave out documents with the same text as an earlier document of any corpus, and "
        "chats with the same turns and label",
    )
    return parser


def main(arguments: list[str]) -> None:
    """Prepare the rows for the config named in ``arguments`` and print the sizes of the corpora."""
    arguments, beam_options = _split_at_dashes(arguments)
    options, overrides = parse_arguments(_parser(), arguments)
    write_missing = _write_missing(options, beam_options)
    reasons = _check_report_options(options)
    config = with_model(load_config(options.config, overrides))
    check_writable(config.data.prepared)
    tokenizer = load_tokenizer(config.data.tokenizer)
    tokenizer.require_size(config.architecture.vocab_size)
    if options.report:
        report(config, options.eval_data, tokenizer)
        return
    if reasons:
        select_dropped(config, reasons, options.eval_data)
    else:
        check_no_dropped(config.data.prepared)
    prepared = prepare(
        config.data, options.workers, objective=config.objective, write_missing=write_missing
    )
    corpora = config.data.additional + config.data.original
    mixture = build_mixture(
        config.data,
        {corpus.name: prepared.rows[corpus.name].rows for corpus in corpora},
        seed=config.seed,
        global_batch_size=config.global_batch_size,
    )
    for group, manifests in (("", prepared.rows), ("held-out ", prepared.heldout)):
        for manifest in manifests.values():
            print(corpus_report(group, manifest, tokenizer))
    print_duration(config, mixture)
    print_evaluations(config)
    if options.inspect:
        inspect(prepared, mixture, tokenizer, options.inspect)


def _check_report_options(options: argparse.Namespace) -> list[str]:
    """Return the reasons for which documents are left out.

    Raises UsageError if two options cannot be combined.
    """
    drops = {OVERLAP: options.drop_overlap, DUPLICATE: options.drop_duplicates}
    reasons = [reason for reason, is_set in drops.items() if is_set]
    if options.report and reasons:
        raise UsageError("--report prepares nothing; set --drop-* in a second call without it.")
    if options.eval_data and not (options.report or options.drop_overlap):
        raise UsageError("--eval-data is only for --report and --drop-overlap.")
    return reasons


def _split_at_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before ``--`` and the arguments after it."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def _write_missing(options: argparse.Namespace, beam_options: list[str]) -> WriteAll | None:
    """Return a function that writes rows with Apache Beam, or None for the local runner.

    Raises UsageError if an option belongs to the runner that is not selected, and UserError if
    Apache Beam is selected but not installed.
    """
    if options.runner == "local":
        if beam_options:
            raise UsageError(f"-- {' '.join(beam_options)} is only for --runner beam.")
        return None
    if options.workers:
        raise UsageError("--workers is only for --runner local; Beam's runners have other options.")
    try:
        from llama_cpt.data.prepare.beam import write_corpora
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise UserError("Apache Beam is not installed; run pip install -e '.[beam]'.") from None
    return partial(write_corpora, options=beam_options)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def report(config: TrainConfig, eval_data: str, tokenizer: Tokenizer) -> None:
    """Write the report on the corpora, and print its table of sizes and its warnings."""
    require_packages("the report on the corpora", "datasketch", "py3langid", extra="report")
    # Imported here, because the page needs Matplotlib, whose import takes a second.
    from llama_cpt.corpus_report.page import summary_rows, write_report
    from llama_cpt.corpus_report.report import make_report

    made = make_report(config, eval_data, tokenizer)
    path = write_report(made)
    print(aligned_table(summary_rows(made), indent=""))
    for warning in made.warnings:
        logger.warning(warning)
    print(f"report: {path}")


def corpus_report(group: str, manifest: Manifest, tokenizer: Tokenizer) -> str:
    """Return a line with the sizes of a prepared corpus, followed by lines with remarks.

    ``group`` is printed before the name of the corpus.
    """
    kind = manifest.chat["kind"] if manifest.chat else "documents"
    lines = [
        f"{group}{manifest.corpus}: {manifest.documents:,} {_NOUNS[kind]}, "
        f"{manifest.tokens:,} tokens, "
        f"{manifest.source_bytes / max(manifest.tokens, 1):.2f} bytes per token, "
        f"{manifest.tokens / max(manifest.characters, 1):.3f} tokens per character"
    ]
    if manifest.sequence_length:
        lines[0] += f", {manifest.rows:,} rows of {manifest.sequence_length:,}"
        if manifest.chat:
            lines += _chat_lines(manifest)
        else:
            lines.append(
                f"  {manifest.dropped_tokens:,} tokens dropped: document tails shorter than a row"
            )
    if manifest.skipped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest.skipped.items())
        skipped = sum(manifest.skipped.values())
        lines.append(f"  {skipped:,} {_NOUNS[kind]} skipped: {reasons}")
    if manifest.dropped_documents:
        reasons = ", ".join(
            f"{n:,} {reason}" for reason, n in sorted(manifest.dropped_documents.items())
        )
        left_out = sum(manifest.dropped_documents.values())
        lines.append(f"  {left_out:,} {_NOUNS[kind]} left out: {reasons}")
    if names := manifest.without_checksums:
        shown = ", ".join(map(one_line, names[:3]))
        shown += f" and {len(names) - 3:,} more" * (len(names) > 3)
        lines.append(
            f"  {len(names):,} Parquet files without page checksums, so that damage to their text "
            f"is not noticed: {shown}"
        )
    if warning := manifest.lossy():
        lines.append(f"  {warning}")
    return printable("\n".join(lines))


def _chat_lines(manifest: Manifest) -> list[str]:
    """Return the remarks on a chat corpus, such as its formats and dropped conversations."""
    counts = Counter(manifest.chat_counts)
    formats = ", ".join(f"{name} ({count:,})" for name, count in manifest.formats.items())
    padding = 1 - counts["places"] / max(manifest.rows * manifest.sequence_length, 1)
    lines = [
        f"  format: {formats}",
        f"  {counts['learnt_tokens']:,} tokens with a loss per epoch, {padding:.1%} of the rows is "
        "padding",
    ]
    lines += [
        f"  {count:,} records with the field {name}, which was dropped"
        for name, count in manifest.dropped_fields.items()
    ]
    if counts["prompt_tokens_twice"]:
        twice = counts["prompt_tokens_twice"]
        lines.append(f"  {twice:,} tokens are prompts that are processed twice")
    remarks = {
        "too_long": "dropped, longer than a row",
        "truncated": "truncated to a row",
        "nothing_to_learn": "dropped, no tokens with a loss within a row",
        "mismatches_cut": "mismatched answers truncated",
    }
    lines += [f"  {counts[name]:,} {text}" for name, text in remarks.items() if counts[name]]
    if manifest.dropped_tokens:
        lines.append(f"  {manifest.dropped_tokens:,} tokens dropped in total")
    return lines


def print_duration(config: TrainConfig, mixture: Mixture) -> None:
    """Print how many steps the rows suffice for, and the number of epochs of each corpus.

    Logs a warning for each corpus whose epochs are above ``data.max_epochs``.
    """
    batch, bound = config.global_batch_size, config.data.max_epochs
    fresh, longest = (mixture.max_rows(epochs) // batch for epochs in (1.0, bound))
    print(
        f"at ALMR {config.data.almr}: {fresh:,} steps of {batch} rows without repeating a row, "
        f"{longest:,} within data.max_epochs={bound:g}"
    )
    all_epochs = mixture.epochs(config.num_steps * batch)
    for corpus, epochs in zip(mixture.corpora, all_epochs, strict=True):
        line = f"{config.num_steps:,} steps: {float(epochs):.2f} epochs of {corpus.name}"
        if epochs > bound:
            logger.warning(f"{line}, above data.max_epochs={bound:g}; train rejects this run")
        else:
            print(f"  {line}")


def print_evaluations(config: TrainConfig) -> None:
    """Print the cost of the run's held-out evaluations, and log a warning if it is high.

    The duration is printed if an earlier attempt of the run has measured it.
    """
    plan = plan_evaluations(config, open_heldout(config.data))
    earlier = read_lines(epath.Path(config.output) / FILE)
    print(plan.describe(seconds_per_evaluation(earlier)))
    if plan.warning:
        logger.warning(plan.warning)


def inspect(prepared: PreparedCorpora, mixture: Mixture, tokenizer: Tokenizer, count: int) -> None:
    """Print the first ``count`` rows of the run as decoded text."""
    rows = open_rows(prepared)
    for number in range(count):
        batch = read_batch(mixture, rows, np.array([[number]], np.int64))
        corpora, indices = mixture.locate(np.array([number], np.int64))
        corpus = int(corpora[0])
        name = mixture.corpora[corpus].name
        print(f"\nrow {number} of the run: row {indices[0]} of {name}")
        batch = batch if isinstance(batch, TokenBatch) else batch.rows
        batch = jax.tree.map(lambda x: x[0], batch)
        found = rows[corpus].read(indices)
        if isinstance(found, np.ndarray):
            continued = bool(found[0, 0] < DOCUMENT_START)
            print(row_as_text(batch, 0, tokenizer, continued=continued))
        else:
            print(packed_row_as_text(batch, 0, tokenizer))


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
