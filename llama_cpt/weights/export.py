"""Export of a run, with tokenizer and model card, to a folder for transformers or peft."""

from functools import partial
import logging

from etils import epath

from llama_cpt.checkpoint.run_folder import is_run_folder
from llama_cpt.config.fields import from_dict, require_above_zero
from llama_cpt.config.schema import TrainConfig
from llama_cpt.model.llama import abstract_llama
from llama_cpt.runtime.atomic import INCOMPLETE, check_new
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.metrics import read_lines
from llama_cpt.weights.hf_config import require_same_architecture
from llama_cpt.weights.hf_export import EXPORT_DTYPES, ExportOptions, export_hf, export_peft
from llama_cpt.weights.hf_names import parameters_by_path
from llama_cpt.weights.hub import HUB_NAME
from llama_cpt.weights.model_card import model_card, training_sections
from llama_cpt.weights.parameter_reader import CheckpointReader
from llama_cpt.weights.prompt_files import PromptFiles, run_prompt_files
from llama_cpt.weights.provenance import LICENSE_FILES, Origin, copy_files, find_origin
from llama_cpt.weights.source import RunFolder, open_source

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
        config = train_config(run)
        origin = _find_origin(config, checkpoint, base)
        prompt_files = run_prompt_files(run, origin, tokenizer)
        export = ExportOptions(
            dtype,
            int(shard_gb * 1e9),
            token_ids=prompt_files.token_ids,
            write_others=partial(_write_others, run, config, origin, prompt_files, "transformers"),
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

    The parameters have the same meaning as in ``to_hf``, but if ``base`` differs from the run's
    ``init_from``, the weights of ``base`` must equal the weights that the adapters were trained on.
    The tokenizer, a model card and the base model's license are written next to the adapters.
    Raises UserError if ``output`` exists, if the checkpoint holds a whole model instead of
    adapters, or if peft cannot load the base model.
    """
    check_new(output)
    run = RunFolder(checkpoint)
    with run.reader() as weights:
        if weights.lora_base is None:
            raise UserError(f"{checkpoint} holds a whole model and no adapters; drop --adapters.")
        config = from_dict(TrainConfig, run.metadata["config"], checkpoint)
        origin = _find_origin(config, checkpoint, base)
        prompt_files = run_prompt_files(run, origin, tokenizer)
        export_peft(
            weights.stored_array,
            weights.lora_base.lora,
            output,
            num_layers=weights.config.num_layers,
            dtype=EXPORT_DTYPES[dtype],
            base=_peft_base(weights, origin, base),
            write_others=partial(_write_others, run, config, origin, prompt_files, "peft"),
        )
    print(f"{output}: adapters of step {run.step} of {checkpoint} in {dtype}")


def _peft_base(weights: CheckpointReader, origin: Origin, base: str | None) -> str:
    """Return the model onto which peft loads the adapters: a hub name or a Hugging Face folder.

    ``base`` is the model that the user named, or None. Raises UserError if the adapters were not
    trained on this model, or if the model is a run folder, which peft cannot load.
    """
    assert weights.lora_base is not None
    source = weights.lora_base.source
    if base is None and HUB_NAME.fullmatch(origin.base) and not origin.runs:
        return origin.base
    if is_run_folder(base or source):
        raise UserError(
            f"{base or source}: the adapters apply to the weights of this run folder, and peft can "
            "load only Hugging Face models. Export it with `to-hf --dtype float32` and name the "
            "result with --base, or drop --adapters to export a merged model."
        )
    if base is None or base == source:
        return source
    with open_source(base).reader() as found:
        require_same_architecture(weights.config, found.config, base)
        for path in parameters_by_path(abstract_llama(found.config)):
            try:
                weights.lora_base.require(path, found.parameter(path))
            except UserError:
                raise UserError(
                    f"--base {base}: {path} differs from the weights that the adapters were "
                    f"trained on, which were at {source!r}; name a Hugging Face folder with those "
                    "weights, or drop --adapters to export a merged model."
                ) from None
    return base


def train_config(run: RunFolder) -> TrainConfig | None:
    """Return the config of a run; None for a folder that ``convert from-hf`` wrote."""
    config = run.metadata["config"]
    return from_dict(TrainConfig, config, run.path) if "init_from" in config else None


def _find_origin(config: TrainConfig | None, checkpoint: str, base: str | None) -> Origin:
    """Return the origin of the base model that the user named, or else of ``checkpoint``."""
    if base is not None:
        return find_origin(base)
    remedy = "Name the base model's folder with --base."
    return find_origin_or_warn(config, checkpoint, remedy)


def find_origin_or_warn(config: TrainConfig | None, source: str, remedy: str) -> Origin:
    """Return the origin of ``source``.

    If the base model cannot be found, log a warning, which ends with ``remedy``, and return an
    origin without a folder.
    """
    try:
        return find_origin(source)
    except UserError as error:
        base = config.init_from if config else ""
        logger.warning(
            "the base model's license and settings are not copied: %s %s",
            error,
            remedy,
        )
        return Origin(base, None)


def _write_others(
    run: RunFolder,
    config: TrainConfig | None,
    origin: Origin,
    prompt_files: PromptFiles,
    library: str,
    folder: epath.Path,
) -> None:
    """Write the tokenizer, license, generation settings and model card into ``folder``."""
    licenses = copy_files(origin.folder, folder, LICENSE_FILES) if origin.folder else []
    prompt_files.write(folder)
    sections = []
    if config is not None:
        metrics = read_lines(epath.Path(run.path) / "metrics.jsonl", run.step)
        sections = training_sections(config, run.metadata, metrics)
    name = folder.name.removesuffix(INCOMPLETE)
    (folder / "README.md").write_text(
        model_card(name, origin, licenses, sections, library), encoding="utf-8"
    )
