"""A run as a folder that others load: weights, tokenizer, licence, card."""

from functools import partial
from pathlib import Path
import sys
import tempfile

from etils import epath

from llama_cpt.config.fields import from_dict, require_above_zero
from llama_cpt.config.schema import TrainConfig
from llama_cpt.data.chat.template import LLAMA3_JINJA, find_template, load_chat_template
from llama_cpt.data.tokenizer.export import export_tokenizer
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.atomic_dir import INCOMPLETE, check_new
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.checkpoint_reader import CheckpointReader
from llama_cpt.weights.hf_export import EXPORT_DTYPES, ExportOptions, export_hf
from llama_cpt.weights.hub import HUB_NAME, resolve
from llama_cpt.weights.model_card import model_card, read_metrics, training_sections
from llama_cpt.weights.peft import export_peft
from llama_cpt.weights.provenance import (
    LICENSE_FILES,
    TOKENIZER_FILES,
    Origin,
    copy_files,
    find_origin,
)


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
    check_new(output)
    with CheckpointReader(checkpoint) as weights:
        run = weights.about["config"]
        config = from_dict(TrainConfig, run, checkpoint) if "init_from" in run else None
        origin = _origin(config, checkpoint) if base is None else find_origin(base)
        theirs = origin.config()
        if theirs.get("vocab_size") != weights.config.vocab_size:
            theirs = {}
        place = tokenizer or _tokenizer_place(config, checkpoint)
        read = load_tokenizer(place) if place and (tokenizer or not theirs) else None
        ends = _ends_of_answers(config, place)
        export = ExportOptions(
            dtype,
            int(shard_gb * 1e9),
            bos_id=theirs.get("bos_token_id", read and read.bos_id),
            eos_id=ends or theirs.get("eos_token_id", read and read.eos_id),
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
    check_new(output)
    with CheckpointReader(checkpoint) as weights:
        if weights.lora_base is None:
            raise UserError(f"{checkpoint} holds a whole model, no adapters: drop --adapters.")
        config = from_dict(TrainConfig, weights.about["config"], checkpoint)
        origin = _origin(config, checkpoint) if base is None else find_origin(base)
        place = tokenizer or _tokenizer_place(config, checkpoint)
        on_hub = HUB_NAME.fullmatch(origin.base) and not origin.runs
        export_peft(
            weights.stored_array,
            weights.lora_base.lora,
            output,
            num_layers=weights.config.num_layers,
            dtype=EXPORT_DTYPES[dtype],
            base=origin.base if on_hub else config.init_from,
            write_others=partial(_write_others, weights, config, origin, place, "peft"),
        )
    print(f"{output}: adapters of step {weights.step} of {checkpoint} in {dtype}")


def _origin(config: TrainConfig | None, source: str) -> Origin:
    try:
        return find_origin(source)
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


def _ends_of_answers(config: TrainConfig | None, tokenizer: str | None) -> list[int] | None:
    """What ends an answer of a model that was taught to chat; None for any other."""
    if config is None or config.data.chat is None or tokenizer is None:
        return None
    template = load_chat_template(load_tokenizer(tokenizer), config.data.chat.template)
    return list(template.stop_ids)


def _write_others(
    weights: CheckpointReader,
    config: TrainConfig | None,
    origin: Origin,
    tokenizer: str | None,
    library: str,
    folder: epath.Path,
) -> None:
    """Tokenizer, licence, generation settings and card."""
    licences = copy_files(origin.folder, folder, LICENSE_FILES) if origin.folder else []
    chats = config is not None and config.data.chat is not None
    same = origin.folder and origin.config().get("vocab_size") == weights.config.vocab_size
    if same and not chats:
        copy_files(origin.folder, folder, ("generation_config.json",))
    if tokenizer is not None:
        _write_tokenizer(tokenizer, folder)
        if chats and find_template(str(folder / "tokenizer.json")) is None:
            (folder / "chat_template.jinja").write_text(LLAMA3_JINJA, encoding="utf-8")
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
                epath.Path(load_tokenizer(source).path).copy(Path(written) / "tokenizer.model")
            copy_files(written, folder, ("*",))
