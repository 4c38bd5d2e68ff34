"""Weights from wherever they are: a Hugging Face folder or a run folder."""

from typing import Any

from etils import epath
import jax
from jax.sharding import Mesh

from llama_cpt.checkpoint.checkpoint import is_run_folder, open_run
from llama_cpt.config.fields import from_dict
from llama_cpt.config.schema import ModelConfig
from llama_cpt.data.tokenizer.tokenizer import FILE_NAMES
from llama_cpt.model.llama import Llama
from llama_cpt.model.lora import abstract_adapters, merge_adapters
from llama_cpt.parallel.mesh import with_shardings
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.hf_config import read_config, require_same_architecture
from llama_cpt.weights.hf_names import checked_tensors
from llama_cpt.weights.hf_weights import load_hf
from llama_cpt.weights.hub import resolve
from llama_cpt.weights.lora_base_check import read_lora_base
from llama_cpt.weights.safetensors import byte_reader, read_json


def load_parameters(source: str, abstract: Llama, mesh: Mesh) -> Llama:
    """The parameters in ``source``, in the tree of ``abstract`` (its options), on ``mesh``.

    ``source``: a Hugging Face folder, ``gs://`` URL or hub name, or a run's folder; adapters come
    added into the weights that they were trained beside. Raises UserError where the architectures
    differ, in constants such as ``rope_theta`` too.
    """
    if not is_run_folder(source):
        model = load_hf(resolve(source), abstract.config, mesh)
        return jax.tree.unflatten(jax.tree.structure(abstract), jax.tree.leaves(model))
    checkpoints, step = open_run(source)
    with checkpoints:
        about = checkpoints.metadata(step)
        require_same_architecture(abstract.config, _saved_model(about, source), source)
        base = read_lora_base(about, source)
        if base is None:
            return checkpoints.restore_trained(step, with_shardings(abstract, mesh))
        like = with_shardings(abstract_adapters(base.lora, abstract), mesh)
        adapters = checkpoints.restore_trained(step, like)
    with base.error_context(source):
        model = load_parameters(base.source, abstract, mesh)
        base.require_all(model)
    return merge_adapters(model, adapters)


def check_source(source: str, config: ModelConfig) -> None:
    """Raise UserError where ``source`` is not there or holds another architecture.

    Reads no weights, only what their files say of them: before hours of other work.
    """
    if not is_run_folder(source):
        folder = resolve(source, weights=False)
        require_same_architecture(config, read_config(folder), source)
        # What lies on the hub is not here yet.
        if epath.Path(source).exists():
            with byte_reader() as reader:
                checked_tensors(folder, config, reader)
        return
    about = _about(source)
    require_same_architecture(config, _saved_model(about, source), source)
    if base := read_lora_base(about, source):
        with base.error_context(source):
            check_source(base.source, config)


def read_model_config(source: str) -> ModelConfig:
    """The architecture of what ``source`` holds, as ``load_parameters`` takes it."""
    if not is_run_folder(source):
        return read_config(resolve(source, weights=False))
    return _saved_model(_about(source), source)


def find_tokenizer(source: str) -> str:
    """Where the tokenizer of ``source`` lies: beside its weights, or as its config says."""
    folder = epath.Path(resolve(source, weights=False))
    if any((folder / name).exists() for name in (*FILE_NAMES, "original")):
        return str(folder)
    data = read_json(str(folder / "config.json")).get("data")
    if isinstance(data, dict) and data.get("tokenizer"):
        return data["tokenizer"]
    raise UserError(f"{source} holds no tokenizer: name the model's own with --tokenizer.")


def _about(source: str) -> dict[str, Any]:
    """Description in the run's newest verified checkpoint, the one that is loaded later."""
    checkpoints, step = open_run(source)
    with checkpoints:
        return checkpoints.metadata(step)


def _saved_model(about: dict[str, Any], source: str) -> ModelConfig:
    try:
        model = about["config"]["model"]
    except (KeyError, TypeError):
        raise UserError(f"{source}: its checkpoint does not name its model.") from None
    return from_dict(ModelConfig, model, source)
