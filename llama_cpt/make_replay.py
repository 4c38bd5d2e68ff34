"""The command that writes replay text with a model: ``python -m llama_cpt.make_replay MODEL``."""

import argparse
from collections.abc import Callable
import hashlib
import json
from pathlib import Path
import re
import sys

from etils import epath

from llama_cpt.evaluation.named_models import ModelOptions, check_model, load_model
from llama_cpt.generation.sampling import Sampling
from llama_cpt.replay.prefixes import read_prefixes
from llama_cpt.replay.writer import ReplayOptions, Writer, settings_of
from llama_cpt.runtime.compile_time import exclude_compilation
from llama_cpt.runtime.distributed import distributed_session, is_primary
from llama_cpt.runtime.errors import UsageError, UserError, one_line_errors
from llama_cpt.runtime.extras import require_packages
from llama_cpt.runtime.interrupt import end_on_interrupt
from llama_cpt.runtime.output_folder import check_writable
from llama_cpt.weights.prompt_format import PromptFormat

DESCRIPTION = """Writes documents that a model generates, as replay text for continual pre-training
when the model's own training data is not available. The documents start with the first token of a
document, or continue the beginnings of given documents. The files are JSON Lines: set
data.original.0.source to OUTPUT/*.jsonl. If the command is stopped, run it again to continue."""


def main(arguments: list[str]) -> int:
    """Write the documents and return the exit status."""
    options = _parser().parse_args(arguments)
    replay = _replay_options(options)
    exclude_compilation()
    with distributed_session():
        if is_primary():
            check_writable(options.output)
            epath.Path(options.output).mkdir(parents=True, exist_ok=True)
        stopped = f"the documents so far are in {options.output}; run the same command to continue."
        with end_on_interrupt(stopped):
            _write(options, replay)
    return 0


def _write(options: argparse.Namespace, replay: ReplayOptions) -> None:
    spec = check_model("model", options.model, ModelOptions(options.tokenizer))
    tokenizer = spec.prompts.tokenizer
    start_ids = _start_ids(spec.prompts, options.start_token)
    context = spec.config.context_length
    if replay.max_tokens + len(start_ids) > context:
        raise UserError(
            f"--max-tokens {replay.max_tokens}: the model's context has {context} tokens; set a "
            "lower number."
        )
    in_language = _language_filter(replay.language)
    prefixes = []
    if options.prefixes:
        prefixes = read_prefixes(
            options.prefixes, options.text_field, tokenizer, options.prefix_tokens
        )
    model = load_model(spec, Path(options.output))
    more = {
        "start_ids": list(start_ids),
        "prefixes": options.prefixes,
        "prefixes_digest": hashlib.sha256(json.dumps(prefixes).encode()).hexdigest()[:16],
        "prefix_tokens": options.prefix_tokens if options.prefixes else 0,
        "text_field": options.text_field if options.prefixes else "",
    }
    settings = settings_of(replay, model.identity, **more)
    writer = Writer(
        model.decoder,
        model.mesh,
        tokenizer,
        start_ids,
        prefixes,
        in_language,
        replay,
    )
    total = writer.write(epath.Path(options.output), settings)
    if is_primary():
        print(
            f"{total['documents']:,} documents, {total['tokens']:,} tokens in {options.output}; "
            f"left out: {total['short']:,} short, {total['other_language']:,} in another language"
        )


def _start_ids(prompts: PromptFormat, name: str) -> tuple[int, ...]:
    """Return the tokens before a document: the token ``name``, or those of the model's training."""
    tokenizer = prompts.tokenizer
    if not name:
        return prompts.document_tokens.for_heldout.begin
    found = tokenizer.special_id(name)
    if found is None:
        raise UserError(
            f"--start-token {name}: {tokenizer.path} has no special token of this name; it has "
            f"{', '.join(list(tokenizer.special_tokens)[:20])}."
        )
    return (found,)


def _language_filter(language: str) -> Callable[[str], bool]:
    """Return whether a text is in ``language``; if it is empty, every text is."""
    if not language:
        return lambda text: True
    require_packages("--language", "py3langid", extra="eval")
    from llama_cpt.evaluation.chat_suite.languages import KNOWN, is_language

    if language not in KNOWN:
        raise UsageError(f"--language {language}: must be one of {', '.join(KNOWN)}.")
    return lambda text: is_language(text[:1000], language)


def _replay_options(options: argparse.Namespace) -> ReplayOptions:
    """Return the options of the documents; raise UsageError if one is invalid."""
    found = re.fullmatch(r"(\d+)/(\d+)", options.part)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--part {options.part}: must be NUMBER/PARTS from 1, such as 2/4.")
    for name in ("tokens", "min_tokens", "rows", "prefix_tokens"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1.")
    least = max(options.min_tokens, options.prefix_tokens + 1 if options.prefixes else 1)
    if options.max_tokens < least:
        raise UsageError(f"--max-tokens {options.max_tokens} must be at least {least}.")
    Sampling(options.temperature, top_p=options.top_p, seed=options.seed)
    return ReplayOptions(
        tokens=options.tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        min_tokens=options.min_tokens,
        max_tokens=options.max_tokens,
        rows=options.rows,
        language=options.language,
        seed=options.seed,
        part=int(found[1]) - 1,
        parts=int(found[2]),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llama_cpt.make_replay", description=DESCRIPTION
    )
    add = parser.add_argument
    add("model", help="Hugging Face folder, run folder, or name on the Hugging Face hub")
    add("--tokens", type=int, required=True, metavar="N", help="number of tokens to write")
    add("--output", required=True, metavar="DIR", help="folder of the documents")
    help_text = "documents whose beginnings are continued (file, glob or TFDS data set)"
    add("--prefixes", default="", metavar="SOURCE", help=help_text)
    help_text = "number of tokens of a beginning (default: 16)"
    add("--prefix-tokens", type=int, default=16, metavar="N", help=help_text)
    add("--text-field", default="text", metavar="NAME", help="text field of --prefixes")
    help_text = "special token before a document (default: as in the model's training, BOS, or EOS)"
    add("--start-token", default="", metavar="NAME", help=help_text)
    add("--temperature", type=float, default=1.0, help="default: 1.0, the model's distribution")
    add("--top-p", type=float, default=1.0, help="default: 1.0, all tokens")
    add("--max-tokens", type=int, default=512, metavar="N", help="longest document (default: 512)")
    help_text = "leave out documents with fewer tokens (default: 32)"
    add("--min-tokens", type=int, default=32, metavar="N", help=help_text)
    help_text = "leave out documents in other languages, such as en"
    add("--language", default="", metavar="CODE", help=help_text)
    help_text = "number of documents that are generated at the same time (default: 32)"
    add("--rows", type=int, default=32, metavar="N", help=help_text)
    add("--seed", type=int, default=0, help="seed of the random numbers (default: 0)")
    help_text = "write part I of N, to divide the work over independent hosts (default: 1/1)"
    add("--part", default="1/1", metavar="I/N", help=help_text)
    add("--tokenizer", default="", metavar="PATH", help="tokenizer instead of the model's own")
    return parser


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
