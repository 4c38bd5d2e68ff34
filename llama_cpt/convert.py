"""The command that converts and compares weights: ``python -m llama_cpt.convert --help``."""

import argparse
from functools import partial
import math
from multiprocessing import get_context, parent_process
import os
import sys
import threading
from typing import Any

import jax

from llama_cpt.checkpoint.run_folder import save_weights
from llama_cpt.config.fields import to_dict
from llama_cpt.runtime.atomic import atomic_dir, check_new
from llama_cpt.runtime.distributed import distributed_session, process_count, run_on_primary
from llama_cpt.runtime.errors import CHECK_FAILED, NEGATIVE_RESULT, one_line_errors
from llama_cpt.runtime.http_client import KEY_VARIABLE
from llama_cpt.runtime.literal_paths import validate_run_folder
from llama_cpt.runtime.tables import aligned_table
from llama_cpt.runtime.untrusted_text import one_line
from llama_cpt.serving.check import check_server
from llama_cpt.weights.export import to_hf, to_peft
from llama_cpt.weights.hf_export import EXPORT_DTYPES
from llama_cpt.weights.hf_weights import load_hf
from llama_cpt.weights.merge import merge, parse_terms
from llama_cpt.weights.provenance import LICENSE_FILES, TOKENIZER_FILES, copy_files, write_origin
from llama_cpt.weights.source import HfFolder, RunFolder
from llama_cpt.weights.verify import (
    LogitsDifference,
    TensorDifference,
    compare_logits,
    compare_weights,
)

DESCRIPTION = (
    "Convert weights between Hugging Face's format and checkpoints, compare them, and merge models."
)
EXAMPLES = """examples:
  python -m llama_cpt.convert from-hf meta-llama/Llama-3.2-1B weights/llama-3.2-1b
  python -m llama_cpt.convert to-hf runs/cpt_1b exports/cpt_1b --dtype bfloat16
  python -m llama_cpt.convert to-hf runs/lora exports/lora-adapters --adapters
  python -m llama_cpt.convert verify meta-llama/Llama-3.2-1B weights/llama-3.2-1b
  python -m llama_cpt.convert check-server exports/cpt_1b http://localhost:8000
  python -m llama_cpt.convert merge exports/average runs/cpt_a=0.5 runs/cpt_b=0.5

SOURCE is a Hugging Face folder, a gs:// URL or a name on the hub; CHECKPOINT is a run's folder or
the output of from-hf. Folders may be gs:// URLs. No accelerator is used. Training accepts SOURCE in
init_from too, so from-hf is only needed to keep or copy the float32 checkpoint.
"""


def main(arguments: list[str]) -> int:
    """Run the subcommand in ``arguments`` and return the exit status."""
    options = _parser().parse_args(arguments)
    _on_cpu()
    with distributed_session():
        if process_count() == 1:
            return _convert(options)
        return run_on_primary(partial(_in_child, options), "convert")


def _in_child(options: argparse.Namespace) -> int:
    """Run ``_convert`` in a child process and return the exit status of the child.

    In the child, JAX and Orbax run as a single process, without the other processes of the command.
    """
    child = get_context("spawn").Process(target=_child_main, args=(options,))
    child.start()
    child.join()
    assert child.exitcode is not None, "the child has ended"
    return child.exitcode if child.exitcode >= 0 else 128 - child.exitcode


def _child_main(options: argparse.Namespace) -> None:
    threading.Thread(target=_follow_parent, daemon=True).start()
    _on_cpu()
    with one_line_errors():
        sys.exit(_convert(options))


def _follow_parent() -> None:
    """Exit this child process as soon as its parent process has ended."""
    parent = parent_process()
    assert parent is not None, "only a child calls this"
    parent.join()
    os._exit(1)


def _on_cpu() -> None:
    """Restrict JAX to the CPU, so that accelerators stay free for other processes."""
    jax.config.update("jax_platforms", "cpu")


def _convert(options: argparse.Namespace) -> int:
    match options.command:
        case "from-hf":
            from_hf(options.source, options.output)
        case "to-hf":
            chosen = {"base": options.base, "tokenizer": options.tokenizer}
            chosen |= {"dtype": options.dtype} if options.dtype else {}
            if options.adapters:
                to_peft(options.checkpoint, options.output, **chosen)
            else:
                to_hf(options.checkpoint, options.output, shard_gb=options.shard_gb, **chosen)
        case "verify":
            return verify(options.source, options.checkpoint)
        case "check-server":
            return print_check(options.folder, options.url, options.model)
        case "merge":
            merge(
                parse_terms(options.terms),
                options.output,
                dtype=options.dtype,
                shard_gb=options.shard_gb,
                tokenizer_source=options.tokenizer_source,
            )
        case unknown:
            raise AssertionError(unknown)
    return 0


def from_hf(source: str, output: str) -> None:
    """Write the weights of a Hugging Face model to ``output`` as a checkpoint.

    The config, tokenizer and license files of ``source`` are copied to ``output`` as well.
    """
    validate_run_folder(output)
    check_new(output)
    source_folder = HfFolder(source).folder()
    with atomic_dir(output) as folder:
        model = load_hf(source_folder)
        copy_files(source_folder, folder, ("config.json", "generation_config.json"))
        copy_files(source_folder, folder, LICENSE_FILES + TOKENIZER_FILES)
        write_origin(source, folder)
        metadata = {"step": 0, "rows_consumed": 0, "config": {"model": to_dict(model.config)}}
        save_weights(str(folder), model, metadata)
    print(f"{output}: {source} as a checkpoint; train with init_from={output!r}")


def verify(source: str, checkpoint: str) -> int:
    """Print how a checkpoint differs from ``source``, and return the exit status.

    The status is 0 if two conditions hold. First, all weights are finite and bit-identical after
    rounding to the type in ``source``. Second, the logits differ from those of ``transformers`` by
    at most ``LOGITS_TOLERANCE`` times the largest absolute logit. If a condition does not hold, the
    status is CHECK_FAILED. If the weights agree but this machine cannot compare the logits, the
    status is NEGATIVE_RESULT.
    """
    folder = HfFolder(source).folder()
    with RunFolder(checkpoint).reader() as weights:
        differences = compare_weights(folder, weights)
        _print_differences(differences)
        logits = compare_logits(folder, weights)
    _print_logits(logits)
    compared = not isinstance(logits, str)
    if not all(d.agrees for d in differences) or (compared and not logits.agrees):
        print(
            f"error: {checkpoint}: differs from {source}, or has values that are not finite; "
            "convert it again with from-hf, unless it was trained.",
            file=sys.stderr,
        )
        return CHECK_FAILED
    return 0 if compared else NEGATIVE_RESULT


def print_check(folder: str, url: str, model: str) -> int:
    """Print how the server at ``url`` differs from the model in ``folder``; return the exit status.

    The status is CHECK_FAILED if a finding is a difference. Ties and findings that could not be
    compared do not change the status.
    """
    findings = check_server(folder, url, model)
    rows = [(one.check, one.result, one.detail) for one in findings]
    print(aligned_table([("check", "result", "details"), *rows]))
    differing = [one.check for one in findings if one.result == "differs" and one.is_check]
    if differing:
        print(f"error: {url}: differs from {folder} in: {', '.join(differing)}.", file=sys.stderr)
        return CHECK_FAILED
    absent = [one.check for one in findings if one.result == "not compared"]
    print(
        f"verdict: no difference from {folder}"
        + (f"; not compared: {', '.join(absent)}" if absent else "")
    )
    return 0


def _print_logits(logits: LogitsDifference | str) -> None:
    if isinstance(logits, str):
        reason = one_line(logits)
        print(f"logits: not compared, so only the weights are verified: {reason}.")
        return
    print(
        f"logits: max abs difference {logits.max_abs:.3g} (tolerance {logits.tolerance:.3g}), "
        f"KL {logits.kl:.3g} nats per token"
    )


def _print_differences(differences: list[TensorDifference]) -> None:
    values = sum(d.values for d in differences)
    differing = sum(d.differing for d in differences)
    # NaN sorts above all numbers, so a tensor with NaN is printed.
    largest = max(differences, key=lambda d: (math.isnan(d.max_abs), d.max_abs))
    print(
        f"{len(differences)} tensors, {values:,} values: {differing:,} differ after rounding to "
        f"the stored type; max abs difference {largest.max_abs:.3g} ({largest.name})"
    )
    worst = sorted((d for d in differences if not d.agrees), key=lambda d: -d.differing)
    for d in worst[:10]:
        print(f"  {d.name}: {d.differing:,} of {d.values:,}, max abs difference {d.max_abs:.3g}")
    if len(worst) > 10:
        print(f"  and {len(worst) - 10} more tensors")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llama_cpt.convert",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    raw: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    into = commands.add_parser("from-hf", help="Hugging Face -> checkpoint", epilog=EXAMPLES, **raw)
    into.add_argument("source", metavar="SOURCE")
    into.add_argument("output", metavar="OUTPUT", help="a new folder")
    out = commands.add_parser("to-hf", help="checkpoint -> Hugging Face", epilog=EXAMPLES, **raw)
    out.add_argument("checkpoint", metavar="CHECKPOINT")
    out.add_argument("output", metavar="OUTPUT", help="a new folder")
    help_text = "type of the weights (default bfloat16, float32 for adapters)"
    out.add_argument("--dtype", choices=list(EXPORT_DTYPES), help=help_text)
    help_text = "write only the adapters of a LoRA run, in PEFT's format, instead of a merged model"
    out.add_argument("--adapters", action="store_true", help=help_text)
    shard_gb: dict[str, Any] = {"type": float, "default": 5.0}
    shard_gb["help"] = "maximum size of a file in GB (default 5)"
    out.add_argument("--shard-gb", **shard_gb)
    out.add_argument("--base", help="folder of the base model, if it was moved")
    out.add_argument("--tokenizer", help="path of the tokenizer, if it was moved")
    check = commands.add_parser(
        "verify",
        help="compare every tensor, and logits; exit status 65 if they differ or are not finite, "
        "3 if only the logits cannot be compared",
        epilog=EXAMPLES,
        **raw,
    )
    check.add_argument("source", metavar="SOURCE")
    check.add_argument("checkpoint", metavar="CHECKPOINT")
    serve = commands.add_parser(
        "check-server",
        help="compare a running OpenAI-compatible server with the model that it serves; exit "
        "status 65 if it differs",
        description="Compare the prompts, the greedy answers and the settings of a running "
        f"OpenAI-compatible server with those of the model in FOLDER (API key: ${KEY_VARIABLE}).",
        epilog=EXAMPLES,
        **raw,
    )
    serve.add_argument("folder", metavar="FOLDER", help="the Hugging Face folder that is served")
    serve.add_argument("url", metavar="URL", help="for example http://localhost:8000")
    help_text = "name of the model, if the server serves several"
    serve.add_argument("--model", default="", metavar="NAME", help=help_text)
    _add_merge(commands, shard_gb, raw)
    return parser


def _add_merge(commands: Any, shard_gb: dict[str, Any], raw: dict[str, Any]) -> None:
    """Add the subcommand ``merge`` to ``commands``."""
    description = """Write the weighted sum of models of one architecture as a Hugging Face folder.

  average of checkpoints          merge OUTPUT A=1/3 B=1/3 C=1/3
  chat vector, A + S * (B - C)    merge OUTPUT A=1 B=S C=-S --tokenizer-source B

The weights must sum to 1. The sum is computed in float32, one parameter at a time."""
    help_text = "weighted sum of models -> Hugging Face"
    merging = commands.add_parser("merge", help=help_text, description=description, **raw)
    merging.add_argument("output", metavar="OUTPUT", help="a new folder")
    help_text = "SOURCE or CHECKPOINT, and its weight, for example 0.5, -0.5 or 1/3"
    merging.add_argument("terms", nargs="+", metavar="MODEL=WEIGHT", help=help_text)
    help_text = "type of the weights (default bfloat16)"
    choices = list(EXPORT_DTYPES)
    merging.add_argument("--dtype", choices=choices, default="bfloat16", help=help_text)
    merging.add_argument("--shard-gb", **shard_gb)
    help_text = (
        "the merged model whose tokenizer, chat template and generation settings are written "
        "(default: the first model)"
    )
    merging.add_argument("--tokenizer-source", metavar="MODEL", help=help_text)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
