"""Export of a run, with tokenizer and model card, to a folder for transformers or peft."""

from functools import partial
import logging
from pathlib import Path
import tempfile

from etils import epath

from llama_cpt.config.fields import from_dict, require_above_zero
from llama_cpt.config.schema import TrainConfig
from llama_cpt.data.chat.template import LLAMA3_JINJA, find_template, load_chat_template
from llama_cpt.data.tokenizer.export import export_tokenizer
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.atomic import INCOMPLETE, check_new
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.metrics import read_lines
from llama_cpt.weights.hf_export import EXPORT_DTYPES, ExportOptions, export_hf, export_peft
from llama_cpt.weights.hub import HUB_NAME
from llama_cpt.weights.model_card import model_card, training_sections
from llama_cpt.weights.provenance import (
    LICENSE_FILES,
    TOKENIZER_FILES,
    Origin,
    copy_files,
    find_origin,
)
from llama_cpt.weights.source import RunFolder

logger = logging.getLogger(__name__)


def to_hf(
    checkpoint: str,
    output: str,
    *,
    dtype: str = "bfloat16",
    shard_gb: float = 5.0,
    base: str | None = None,
    tokenizer: str | None = None,
) -> None:
    """Export the newest verified checkpoint of a run as the Hugging Face folder ``output``.

    LoRA adapters are merged into the base weights. The config, the tokenizer, a model card and the
    base model's license are written next to the weights. ``shard_gb`` is the maximum size of a
    weight file in GB. ``base`` is the folder or hub name of the base model; the default is found
    through the run's ``init_from``. ``tokenizer`` is a path; the default is the run's tokenizer.
    Raises UserError if ``output`` exists or if the run has no readable checkpoint.
    """
    require_above_zero("--shard-gb", shard_gb)
    check_new(output)
    run = RunFolder(checkpoint)
    with run.reader() as weights:
        config = _train_config(run)
        origin = _origin(config, checkpoint) if base is None else find_origin(base)
        base_config = origin.config()
        if base_config.get("vocab_size") != weights.config.vocab_size:
            base_config = {}
        path = tokenizer or _find_tokenizer(run)
        loaded = load_tokenizer(path) if path and (tokenizer or not base_config) else None
        stop_ids = _stop_ids(config, path)
        export = ExportOptions(
            dtype,
            int(shard_gb * 1e9),
            bos_id=base_config.get("bos_token_id", loaded and loaded.bos_id),
            eos_id=stop_ids or base_config.get("eos_token_id", loaded and loaded.eos_id),
            write_others=partial(_write_others, run, config, origin, path, "transformers"),
        )
        export_hf(weights.parameter, weights.config, output, export)
    print(f"{output}: step {run.step} of {checkpoint} in {dtype}")


def to_peft(
    checkpoint: str,
    output: str,
    *,
    dtype: str = "float32",
    base: str | None = None,
    tokenizer: str | None = None,
) -> None:
    """Export the adapters in the newest verified checkpoint of a LoRA run for the library ``peft``.

    The parameters have the same meaning as in ``to_hf``. The tokenizer, a model card and the base
    model's license are written next to the adapters. Raises UserError if ``output`` exists or if
    the checkpoint holds a whole model instead of adapters.
    """
    check_new(output)
    run = RunFolder(checkpoint)
    with run.reader() as weights:
        if weights.lora_base is None:
            raise UserError(f"{checkpoint} holds a whole model and no adapters; drop --adapters.")
        config = from_dict(TrainConfig, run.metadata["config"], checkpoint)
        origin = _origin(config, checkpoint) if base is None else find_origin(base)
        path = tokenizer or _find_tokenizer(run)
        on_hub = HUB_NAME.fullmatch(origin.base) and not origin.runs
        export_peft(
            weights.stored_array,
            weights.lora_base.lora,
            output,
            num_layers=weights.config.num_layers,
            dtype=EXPORT_DTYPES[dtype],
            base=origin.base if on_hub else config.init_from,
            write_others=partial(_write_others, run, config, origin, path, "peft"),
        )
    print(f"{output}: adapters of step {run.step} of {checkpoint} in {dtype}")


def _train_config(run: RunFolder) -> TrainConfig | None:
    """Return the config of a run; None for a folder that ``convert from-hf`` wrote."""
    config = run.metadata["config"]
    return from_dict(TrainConfig, config, run.path) if "init_from" in config else None


def _origin(config: TrainConfig | None, source: str) -> Origin:
    """Return the origin of ``source``.

    If the base model cannot be found, log a warning and return an origin without a folder.
    """
    try:
        return find_origin(source)
    except UserError as error:
        base = config.init_from if config else ""
        logger.warning(
            "the base model's license and settings are not copied: %s Name the base model's folder "
            "with --base.",
            error,
        )
        return Origin(base, None)


def _find_tokenizer(run: RunFolder) -> str | None:
    """Return the path of the run's tokenizer.

    If the tokenizer is missing, log a warning and return None.
    """
    try:
        return run.tokenizer
    except UserError as error:
        logger.warning("no tokenizer is written: %s", error)
        return None


def _stop_ids(config: TrainConfig | None, tokenizer: str | None) -> list[int] | None:
    """Return the token ids that end an answer; None if the run did not train on chats."""
    if config is None or config.data.chat is None or tokenizer is None:
        return None
    template = load_chat_template(load_tokenizer(tokenizer), config.data.chat.template)
    return list(template.stop_ids)


def _write_others(
    run: RunFolder,
    config: TrainConfig | None,
    origin: Origin,
    tokenizer: str | None,
    library: str,
    folder: epath.Path,
) -> None:
    """Write the tokenizer, license, generation settings and model card into ``folder``."""
    licenses = copy_files(origin.folder, folder, LICENSE_FILES) if origin.folder else []
    chats = config is not None and config.data.chat is not None
    same_vocab = origin.config().get("vocab_size") == run.architecture.vocab_size
    if origin.folder and same_vocab and not chats:
        copy_files(origin.folder, folder, ("generation_config.json",))
    if tokenizer is not None:
        _write_tokenizer(tokenizer, folder)
        if chats and find_template(str(folder / "tokenizer.json")) is None:
            (folder / "chat_template.jinja").write_text(LLAMA3_JINJA, encoding="utf-8")
    sections = []
    if config is not None:
        metrics = read_lines(epath.Path(run.path) / "metrics.jsonl", run.step)
        sections = training_sections(config, run.metadata["rows_consumed"], metrics)
    name = folder.name.removesuffix(INCOMPLETE)
    (folder / "README.md").write_text(
        model_card(name, origin, licenses, sections, library), encoding="utf-8"
    )


def _write_tokenizer(source: str, folder: epath.Path) -> None:
    """Write the tokenizer ``source`` into ``folder`` in Hugging Face's format.

    If the tokenizer cannot be converted, log a warning and copy the tokenizer unchanged.
    """
    path = epath.Path(source)
    if (path / "tokenizer.json").exists() and (path / "tokenizer_config.json").exists():
        copy_files(source, folder, TOKENIZER_FILES)
    else:
        with tempfile.TemporaryDirectory() as converted:
            try:
                export_tokenizer(source, converted)
            except UserError as error:
                logger.warning("%s The tokenizer is copied unchanged.", error)
                epath.Path(load_tokenizer(source).path).copy(Path(converted) / "tokenizer.model")
            copy_files(converted, folder, ("*",))
