"""The command that brings weights in and out: ``python -m llama_cpt.convert --help``."""

import argparse
from functools import partial
from pathlib import Path
import shutil
import sys
import tempfile
from typing import Any

from etils import epath
import jax

from llama_cpt.config import TrainConfig
from llama_cpt.data.tokenizer import load_tokenizer
from llama_cpt.data.tokenizer_export import export_tokenizer
from llama_cpt.errors import UserError, one_line_errors
from llama_cpt.fields import from_dict, require_above_zero, to_dict
from llama_cpt.model.hf_export import EXPORT_DTYPES, ExportOptions, export_hf
from llama_cpt.model.hf_verify import TensorDifference, compare_logits, compare_weights
from llama_cpt.model.hf_weights import load_hf
from llama_cpt.model.hub import HUB_NAME, resolve
from llama_cpt.model.model_card import model_card, read_metrics, training_sections
from llama_cpt.model.new_folder import INCOMPLETE, new_folder, require_new
from llama_cpt.model.origin import (
    LICENCE_FILES,
    TOKENIZER_FILES,
    Origin,
    copy_files,
    origin_of,
    write_origin,
)
from llama_cpt.model.peft_folder import export_peft
from llama_cpt.model.trained_weights import TrainedWeights
from llama_cpt.training.checkpoint import save_trained

DESCRIPTION = "Weights from Hugging Face's format to checkpoints, back, and compared."
EXAMPLES = """examples:
  python -m llama_cpt.convert from-hf meta-llama/Llama-3.2-1B weights/llama-3.2-1b
  python -m llama_cpt.convert to-hf runs/cpt_1b exports/cpt_1b --dtype bfloat16
  python -m llama_cpt.convert to-hf runs/lora exports/lora-adapters --adapters
  python -m llama_cpt.convert verify meta-llama/Llama-3.2-1B weights/llama-3.2-1b

SOURCE is a Hugging Face folder, a gs:// URL or a name on the hub; CHECKPOINT is a run's folder or
what from-hf wrote. Folders may be gs:// URLs. No accelerator is used. Training accepts SOURCE in
init_from as well: from-hf serves where its float32 checkpoint is to be kept or copied.
"""


def main(arguments: list[str]) -> int:
    """Parse and convert; the exit status."""
    options = _parser().parse_args(arguments)
    # Weights pass through the host; an accelerator that another process uses is left alone.
    jax.config.update("jax_platforms", "cpu")
    match options.command:
        case "from-hf":
            from_hf(options.source, options.output)
        case "to-hf":
            given = {"base": options.base, "tokenizer": options.tokenizer}
            given |= {"dtype": options.dtype} if options.dtype else {}
            if options.adapters:
                to_peft(options.checkpoint, options.output, **given)
            else:
                to_hf(options.checkpoint, options.output, shard_gb=options.shard_gb, **given)
        case "verify":
            return 0 if verify(options.source, options.checkpoint) else 1
    return 0


def from_hf(source: str, output: str) -> None:
    """Write the weights of ``source`` as a checkpoint, its tokenizer and licence beside it."""
    require_new(output)
    folder = resolve(source)
    with new_folder(output) as place:
        model = load_hf(folder)
        copy_files(folder, place, ("config.json", "generation_config.json"))
        copy_files(folder, place, LICENCE_FILES + TOKENIZER_FILES)
        write_origin(source, place)
        about = {"step": 0, "rows_consumed": 0, "config": {"model": to_dict(model.config)}}
        save_trained(str(place), model, about)
    print(f"{output}: {source} as a checkpoint; train with init_from={output!r}")


def to_hf(
    checkpoint: str,
    output: str,
    *,
    dtype: str = "bfloat16",
    shard_gb: float = 5.0,
    base: str | None = None,
    tokenizer: str | None = None,
) -> None:
    """Write the newest checkpoint of a run as a Hugging Face folder, adapters merged.

    Config, tokenizer, model card and the base's licence come with it; ``base`` says where that
    one lies (a folder or hub name) if it is no longer where the run started from, ``tokenizer``
    where the tokenizer lies if it was moved.
    """
    require_above_zero("--shard-gb", shard_gb)
    require_new(output)
    with TrainedWeights(checkpoint) as weights:
        run = weights.about["config"]
        config = from_dict(TrainConfig, run, checkpoint) if "init_from" in run else None
        origin = _origin(config, checkpoint) if base is None else origin_of(base)
        theirs = origin.config()
        if theirs.get("vocab_size") != weights.config.vocab_size:
            theirs = {}
        place = tokenizer or _tokenizer_place(config, checkpoint)
        read = load_tokenizer(place) if place and (tokenizer or not theirs) else None
        export = ExportOptions(
            dtype,
            int(shard_gb * 1e9),
            bos_id=theirs.get("bos_token_id", read and read.bos_id),
            eos_id=theirs.get("eos_token_id", read and read.eos_id),
            write_others=partial(_write_others, weights, config, origin, place, "transformers"),
        )
        export_hf(weights.parameter, weights.config, output, export)
    print(f"{output}: step {weights.step} of {checkpoint} in {dtype}")


def to_peft(
    checkpoint: str,
    output: str,
    *,
    dtype: str = "float32",
    base: str | None = None,
    tokenizer: str | None = None,
) -> None:
    """Write the newest checkpoint of a LoRA run as a folder of adapters that ``peft`` loads.

    What comes with it, and ``base`` and ``tokenizer``, are as in ``to_hf``.
    """
    require_new(output)
    with TrainedWeights(checkpoint) as weights:
        if weights.beside is None:
            raise UserError(f"{checkpoint} holds a whole model, no adapters: drop --adapters.")
        config = from_dict(TrainConfig, weights.about["config"], checkpoint)
        origin = _origin(config, checkpoint) if base is None else origin_of(base)
        place = tokenizer or _tokenizer_place(config, checkpoint)
        on_hub = HUB_NAME.fullmatch(origin.base) and not origin.runs
        export_peft(
            weights.stored,
            weights.beside.lora,
            output,
            num_layers=weights.config.num_layers,
            dtype=EXPORT_DTYPES[dtype],
            base=origin.base if on_hub else config.init_from,
            write_others=partial(_write_others, weights, config, origin, place, "peft"),
        )
    print(f"{output}: adapters of step {weights.step} of {checkpoint} in {dtype}")


def verify(source: str, checkpoint: str) -> bool:
    """Print how a checkpoint differs from ``source``, tensors and logits; whether nothing does."""
    folder = resolve(source)
    with TrainedWeights(checkpoint) as weights:
        differences = compare_weights(folder, weights)
        _print_differences(differences)
        logits = compare_logits(folder, weights)
    if isinstance(logits, str):
        print(f"logits: not compared: {logits}")
    else:
        print(f"logits: max abs difference {logits.max_abs:.3g}, KL {logits.kl:.3g} nats a token")
    return not any(difference.differing for difference in differences)


def _origin(config: TrainConfig | None, source: str) -> Origin:
    try:
        return origin_of(source)
    except UserError as error:
        base = config.init_from if config else ""
        print(
            f"warning: the base's licence and settings are not copied: {error} Name its place with "
            "--base.",
            file=sys.stderr,
        )
        return Origin(base, None)


def _tokenizer_place(config: TrainConfig | None, checkpoint: str) -> str | None:
    """Where the tokenizer lies: what the run was given, or beside what from-hf wrote."""
    if config is None:
        files = (epath.Path(checkpoint) / name for name in ("tokenizer.json", "tokenizer.model"))
        return checkpoint if any(file.exists() for file in files) else None
    place = config.data.tokenizer
    if epath.Path(place).exists():
        return place
    try:
        return resolve(place, weights=False)
    except UserError as error:
        print(
            f"warning: no tokenizer is written: data.tokenizer={error} Name its place with "
            "--tokenizer.",
            file=sys.stderr,
        )
        return None


def _write_others(
    weights: TrainedWeights,
    config: TrainConfig | None,
    origin: Origin,
    tokenizer: str | None,
    library: str,
    folder: epath.Path,
) -> None:
    """Tokenizer, licence, generation settings and card."""
    licences = copy_files(origin.folder, folder, LICENCE_FILES) if origin.folder else []
    if origin.folder and origin.config().get("vocab_size") == weights.config.vocab_size:
        copy_files(origin.folder, folder, ("generation_config.json",))
    if tokenizer is not None:
        _write_tokenizer(tokenizer, folder)
    sections = []
    if config is not None:
        metrics = read_metrics(epath.Path(weights.folder) / "metrics.jsonl", weights.step)
        sections = training_sections(config, weights.about["rows_consumed"], metrics)
    name = folder.name.removesuffix(INCOMPLETE)
    (folder / "README.md").write_text(
        model_card(name, origin, licences, sections, library), encoding="utf-8"
    )


def _write_tokenizer(source: str, folder: epath.Path) -> None:
    """A Hugging Face tokenizer is copied as it is, with its template; any other is turned."""
    place = epath.Path(source)
    if (place / "tokenizer.json").exists() and (place / "tokenizer_config.json").exists():
        copy_files(source, folder, TOKENIZER_FILES)
    else:
        with tempfile.TemporaryDirectory() as written:
            try:
                export_tokenizer(source, written)
            except UserError as error:
                print(f"warning: {error} It is copied as it is.", file=sys.stderr)
                shutil.copyfile(load_tokenizer(source).path, Path(written) / "tokenizer.model")
            copy_files(written, folder, ("*",))


def _print_differences(differences: list[TensorDifference]) -> None:
    values = sum(d.values for d in differences)
    differing = sum(d.differing for d in differences)
    largest = max(differences, key=lambda d: d.max_abs)
    print(
        f"{len(differences)} tensors, {values:,} values: {differing:,} differ once rounded to the "
        f"type stored; max abs difference {largest.max_abs:.3g} ({largest.name})"
    )
    worst = sorted((d for d in differences if d.differing), key=lambda d: -d.differing)
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
    told = "bfloat16 unless given, float32 for adapters"
    out.add_argument("--dtype", choices=list(EXPORT_DTYPES), help=told)
    told = "of a LoRA run: write the adapters alone, in PEFT's format, instead of a merged model"
    out.add_argument("--adapters", action="store_true", help=told)
    out.add_argument("--shard-gb", type=float, default=5.0, help="size of a file (default 5)")
    out.add_argument("--base", help="where the first model of the line lies, if it was moved")
    out.add_argument("--tokenizer", help="where the tokenizer lies, if it was moved")
    check = commands.add_parser(
        "verify",
        help="compare every tensor, and logits; exit status 1 where they differ",
        epilog=EXAMPLES,
        **raw,
    )
    check.add_argument("source", metavar="SOURCE")
    check.add_argument("checkpoint", metavar="CHECKPOINT")
    return parser


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
