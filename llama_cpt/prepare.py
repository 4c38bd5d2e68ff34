"""The command that makes token rows: ``python -m llama_cpt.prepare CONFIG [--inspect N]``."""

import argparse
import sys

import jax
import numpy as np

from llama_cpt.config import TrainConfig
from llama_cpt.config_file import load
from llama_cpt.data.corpora import Prepared, prepare
from llama_cpt.data.inspect_rows import row_as_text
from llama_cpt.data.loader import read_batch
from llama_cpt.data.mixture import Mixture, mixture_of
from llama_cpt.data.token_rows import Manifest, TokenRows
from llama_cpt.data.tokenizer import Tokenizer, load_tokenizer
from llama_cpt.errors import one_line_errors
from llama_cpt.folders import require_writable


def main(arguments: list[str]) -> None:
    """Parse, prepare, report."""
    parser = argparse.ArgumentParser(
        prog="python -m llama_cpt.prepare",
        description="Turn the config's documents into token rows, by all cores; what is done is "
        "not done again. Prints what there is and how long it lasts at the config's ALMR.",
        epilog="Every field of the config is an option: `CONFIG --help` lists them.",
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
    options, overrides = parser.parse_known_args(arguments)
    if options.config is None or {"-h", "--help"} & set(overrides):
        parser.print_help()
        if options.config is None:
            return
    config = load(options.config, overrides)
    require_writable(config.data.prepared)
    tokenizer = load_tokenizer(config.data.tokenizer)
    tokenizer.require_size(config.model.vocab_size)
    prepared = prepare(config.data, options.workers)
    corpora = config.data.additional + config.data.original
    mixture = mixture_of(
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


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def corpus_report(group: str, manifest: Manifest, tokenizer: Tokenizer) -> str:
    """What ``prepare`` made of a corpus, in one line and one for each thing to know."""
    lines = [
        f"{group}{manifest.corpus}: {manifest.documents:,} documents, {manifest.tokens:,} tokens, "
        f"{manifest.source_bytes / manifest.tokens:.2f} bytes a token, "
        f"{manifest.tokens / manifest.characters:.3f} tokens a character"
    ]
    if manifest.sequence_length:
        lines[0] += f", {manifest.rows:,} rows of {manifest.sequence_length:,}"
        lines.append(f"  {manifest.dropped_tokens:,} tokens left out: tails that fill no row")
    if manifest.skipped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest.skipped.items())
        lines.append(f"  {sum(manifest.skipped.values()):,} documents skipped: {reasons}")
    if told := manifest.lossy():
        lines.append(f"  {told}")
    return "\n".join(lines)


def print_duration(config: TrainConfig, mixture: Mixture) -> None:
    """How long the rows last at the config's ALMR, and how often its steps pass over them."""
    batch, bound = config.global_batch_size, config.data.max_epochs
    fresh, longest = (mixture.rows_within(passes) // batch for passes in (1.0, bound))
    print(
        f"at ALMR {config.data.almr}: {fresh:,} steps of {batch} rows without repeating a row, "
        f"{longest:,} within data.max_epochs={bound:g}"
    )
    passes = mixture.passes(config.num_steps * batch)
    for corpus, times in zip(mixture.corpora, passes, strict=True):
        line = f"{config.num_steps:,} steps: {float(times):.2f} passes of {corpus.name}"
        if times > bound:
            print(f"warning: {line}, above data.max_epochs={bound:g}: train refuses this run")
        else:
            print(f"  {line}")


def inspect(prepared: Prepared, mixture: Mixture, tokenizer: Tokenizer, count: int) -> None:
    """Print the run's first ``count`` rows as the model sees them."""
    rows = [TokenRows(prepared.folder(corpus.name)) for corpus in mixture.corpora]
    for number in range(count):
        batch = read_batch(mixture, rows, tokenizer.bos_id, np.array([[number]], np.int64))
        corpora, places = mixture.locate(np.array([number], np.int64))
        name = mixture.corpora[int(corpora[0])].name
        print(f"\nrow {number} of the run: row {places[0]} of {name}")
        print(row_as_text(jax.tree.map(lambda x: x[0], batch), 0, tokenizer))


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
