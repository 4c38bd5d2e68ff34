"""The command that makes token rows: ``python -m llama_cpt.prepare CONFIG``."""

import argparse
from functools import partial
import sys

import jax
import numpy as np

from llama_cpt.config.loading import load_config
from llama_cpt.config.schema import TrainConfig
from llama_cpt.data.batch import TokenBatch
from llama_cpt.data.inspect_rows import packed_row_as_text, row_as_text
from llama_cpt.data.loader import read_batch
from llama_cpt.data.mixture import Mixture, build_mixture
from llama_cpt.data.prepare.corpora import PreparedCorpora, WriteAll, open_rows, prepare
from llama_cpt.data.rows import Manifest
from llama_cpt.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from llama_cpt.runtime.errors import UsageError, UserError, one_line_errors
from llama_cpt.runtime.output_folder import check_writable

_NOUNS = {
    "documents": "documents",
    "conversations": "conversations",
    "preferences": "preferences",
    "unpaired": "judged answers or pairs of them",
}


def main(arguments: list[str]) -> None:
    """Parse, prepare, report."""
    parser = argparse.ArgumentParser(
        prog="python -m llama_cpt.prepare",
        description="Turn the config's documents or chats into token rows, by all cores; what is "
        "done is not done again. Prints what there is and how long it lasts at the config's ALMR.",
        epilog="Every field of the config is an option: `CONFIG --help` lists them. What follows "
        "`--` is for Beam: `CONFIG --runner beam -- --runner DataflowRunner ...`.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("config", nargs="?", help="a config in Python, or a run's config.json")
    parser.add_argument(
        "--inspect",
        type=_count,
        default=0,
        metavar="N",
        help="show the run's first N rows, decoded",
    )
    parser.add_argument(
        "--workers", type=_count, metavar="N", help="processes (default: all cores)"
    )
    parser.add_argument(
        "--runner",
        choices=("local", "beam"),
        default="local",
        help="this machine, or Apache Beam: Dataflow, Flink, Spark (default: local)",
    )
    arguments, beam_options = _cut_at_dashes(arguments)
    options, overrides = parser.parse_known_args(arguments)
    if options.config is None or {"-h", "--help"} & set(overrides):
        parser.print_help()
        if options.config is None:
            return
    write_missing = _write_missing(options, beam_options)
    config = load_config(options.config, overrides)
    check_writable(config.data.prepared)
    tokenizer = load_tokenizer(config.data.tokenizer)
    tokenizer.require_size(config.model.vocab_size)
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
    if options.inspect:
        inspect(prepared, mixture, tokenizer, options.inspect)


def _cut_at_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def _write_missing(options: argparse.Namespace, beam_options: list[str]) -> WriteAll | None:
    """Apache Beam where it is asked for."""
    if options.runner == "local":
        if beam_options:
            raise UsageError(f"-- {' '.join(beam_options)}: only for --runner beam.")
        return None
    if options.workers:
        raise UsageError("--workers is for --runner local; Beam's runners have their own options.")
    try:
        from llama_cpt.data.prepare.beam import write_corpora
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise UserError("Apache Beam is not installed: pip install -e '.[beam]'.") from None
    return partial(write_corpora, options=beam_options)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def corpus_report(group: str, manifest: Manifest, tokenizer: Tokenizer) -> str:
    """What ``prepare`` made of a corpus, in one line and one for each thing to know."""
    kind = manifest.chat["kind"] if manifest.chat else "documents"
    lines = [
        f"{group}{manifest.corpus}: {manifest.documents:,} {_NOUNS[kind]}, "
        f"{manifest.tokens:,} tokens, "
        f"{manifest.source_bytes / manifest.tokens:.2f} bytes a token, "
        f"{manifest.tokens / manifest.characters:.3f} tokens a character"
    ]
    if manifest.sequence_length:
        lines[0] += f", {manifest.rows:,} rows of {manifest.sequence_length:,}"
        if manifest.chat:
            lines += _chat_lines(manifest)
        else:
            lines.append(f"  {manifest.dropped_tokens:,} tokens left out: tails that fill no row")
    if manifest.skipped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest.skipped.items())
        skipped = sum(manifest.skipped.values())
        lines.append(f"  {skipped:,} {_NOUNS[kind]} skipped: {reasons}")
    if told := manifest.lossy():
        lines.append(f"  {told}")
    return "\n".join(lines)


def _chat_lines(manifest: Manifest) -> list[str]:
    """What became of chat data: formats, places of the rows, what is too long."""
    counts = manifest.chat_counts
    formats = ", ".join(f"{name} ({count:,})" for name, count in manifest.formats.items())
    padding = 1 - counts["places"] / (manifest.rows * manifest.sequence_length)
    lines = [
        f"  format: {formats}",
        f"  {counts['learnt_tokens']:,} tokens learnt in a pass, {padding:.1%} of the rows is "
        "padding",
    ]
    if counts["prompt_tokens_twice"]:
        twice = counts["prompt_tokens_twice"]
        lines.append(f"  {twice:,} tokens are prompts read a second time")
    told = {
        "too_long": "left out, longer than a row",
        "truncated": "truncated to a row",
        "nothing_to_learn": "left out, nothing to learn within a row",
        "mismatches_cut": "mismatches lost their end",
    }
    lines += [f"  {counts[name]:,} {text}" for name, text in told.items() if counts[name]]
    if manifest.dropped_tokens:
        lines.append(f"  {manifest.dropped_tokens:,} tokens left out so")
    return lines


def print_duration(config: TrainConfig, mixture: Mixture) -> None:
    """How long the rows last at the config's ALMR, and how often its steps pass over them."""
    batch, bound = config.global_batch_size, config.data.max_epochs
    fresh, longest = (mixture.max_rows(passes) // batch for passes in (1.0, bound))
    print(
        f"at ALMR {config.data.almr}: {fresh:,} steps of {batch} rows without repeating a row, "
        f"{longest:,} within data.max_epochs={bound:g}"
    )
    passes = mixture.epochs(config.num_steps * batch)
    for corpus, times in zip(mixture.corpora, passes, strict=True):
        line = f"{config.num_steps:,} steps: {float(times):.2f} passes of {corpus.name}"
        if times > bound:
            print(f"warning: {line}, above data.max_epochs={bound:g}: train refuses this run")
        else:
            print(f"  {line}")


def inspect(prepared: PreparedCorpora, mixture: Mixture, tokenizer: Tokenizer, count: int) -> None:
    """Print the run's first ``count`` rows as the model sees them."""
    rows = open_rows(prepared)
    for number in range(count):
        batch = read_batch(mixture, rows, tokenizer.bos_id, np.array([[number]], np.int64))
        corpora, places = mixture.locate(np.array([number], np.int64))
        name = mixture.corpora[int(corpora[0])].name
        print(f"\nrow {number} of the run: row {places[0]} of {name}")
        shown = packed_row_as_text if prepared.config.chat else row_as_text
        batch = batch if isinstance(batch, TokenBatch) else batch.rows
        print(shown(jax.tree.map(lambda x: x[0], batch), 0, tokenizer))


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
