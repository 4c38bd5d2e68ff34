"""A table that maps our parameters to Hugging Face's tensors, for import and export."""

from dataclasses import dataclass
from typing import Any

from flax import nnx
import jax
import numpy as np

from llama_cpt.config.model import ModelConfig
from llama_cpt.model.llama import Llama, abstract_llama
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.safetensors import ByteReader, StoredTensor, read_block, stored_tensors


@dataclass(frozen=True)
class TensorName:
    """A parameter's name in our model, and the name of the Hugging Face tensors that store it.

    A parameter that is stacked over layers is stored in one tensor per layer.
    """

    path: str
    """The parameter's path in our model, such as ``layers/query``."""
    hf_name: str
    """The tensor's name, in which ``{}`` stands for the index of the layer."""
    transposed: bool
    """True if Hugging Face stores the matrix as (out, in). Our matrices are (in, out)."""

    @property
    def stacked(self) -> bool:
        """True if our parameter has a leading layer dimension."""
        return "{}" in self.hf_name

    def tensor(self, layer: int) -> str:
        """Return the tensor's name for the layer with the index ``layer``."""
        return self.hf_name.format(layer)


TENSOR_NAMES = (
    TensorName("embedding", "model.embed_tokens.weight", False),
    TensorName("layers/attention_norm", "model.layers.{}.input_layernorm.weight", False),
    TensorName("layers/query", "model.layers.{}.self_attn.q_proj.weight", True),
    TensorName("layers/key", "model.layers.{}.self_attn.k_proj.weight", True),
    TensorName("layers/value", "model.layers.{}.self_attn.v_proj.weight", True),
    TensorName("layers/output", "model.layers.{}.self_attn.o_proj.weight", True),
    TensorName("layers/mlp_norm", "model.layers.{}.post_attention_layernorm.weight", False),
    TensorName("layers/gate", "model.layers.{}.mlp.gate_proj.weight", True),
    TensorName("layers/up", "model.layers.{}.mlp.up_proj.weight", True),
    TensorName("layers/down", "model.layers.{}.mlp.down_proj.weight", True),
    TensorName("norm", "model.norm.weight", False),
    TensorName("lm_head", "lm_head.weight", False),
)
BY_OURS = {name.path: name for name in TENSOR_NAMES}

# RoPE tables that old exports contain. transformers ignores them as well.
IGNORED_TENSORS = "rotary_emb.inv_freq"


def parameters_by_path(model: Llama) -> dict[str, nnx.Param[Any]]:
    """Return the parameters of a concrete or abstract model, keyed by path (``layers/query``)."""
    parameters = {}
    for ours in BY_OURS:
        holder, _, attribute = ours.rpartition("/")
        parameter = getattr(getattr(model, holder) if holder else model, attribute)
        if parameter is not None:
            parameters[ours] = parameter
    return parameters


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the Hugging Face tensors by name, in the order of ``tensor_order``."""
    parameters = parameters_by_path(abstract_llama(config))
    shapes = {}
    for name, layer in tensor_order(config):
        if name.path in parameters:
            shape = tuple(parameters[name.path].shape)[1 if name.stacked else 0 :]
            shapes[name.tensor(layer)] = shape[::-1] if name.transposed else shape
    return shapes


def tensor_order(config: ModelConfig) -> list[tuple[TensorName, int]]:
    """Return the name and layer index of every tensor, in the order of the forward pass.

    The list includes the output matrix even if the model ties it to the embedding.
    """
    stacked = [name for name in TENSOR_NAMES if name.stacked]
    layers = [(name, layer) for layer in range(config.num_layers) for name in stacked]
    return [(TENSOR_NAMES[0], 0), *layers, (TENSOR_NAMES[-2], 0), (TENSOR_NAMES[-1], 0)]


def with_parameters(model: Llama, arrays: dict[str, Any]) -> Llama:
    """Return a copy of ``model`` with the values of ``arrays``, which are keyed by path.

    ``model`` can be concrete or abstract.
    """

    def fill(path: tuple[Any, ...], parameter: nnx.Param[Any]) -> nnx.Variable[Any]:
        return parameter.replace(arrays[jax.tree_util.keystr(path, simple=True, separator="/")])

    return jax.tree_util.tree_map_with_path(
        fill, model, is_leaf=lambda node: isinstance(node, nnx.Param)
    )


def checked_tensors(
    folder: str, config: ModelConfig, reader: ByteReader
) -> dict[str, StoredTensor]:
    """Return the stored tensors that ``config`` requires, keyed by name.

    Only the headers of the files are read, unless a model with tied embeddings also stores its
    output matrix. Raises UserError if a tensor is missing or unexpected, or has a wrong shape.
    """
    tensors = stored_tensors(folder, reader)
    # Checked first, because the list of expected tensors grows with the number of layers.
    if config.num_layers > len(tensors):
        raise UserError(
            f"{folder}: holds {len(tensors)} tensors, but config.json requires "
            f"{config.num_layers:,} layers; download the folder again."
        )
    expected = tensor_shapes(config)
    for name, shape in expected.items():
        if name not in tensors:
            raise UserError(
                f"{folder}: tensor {name!r} is missing, but config.json requires it; download the "
                "folder again."
            )
        if tensors[name].shape != shape:
            raise UserError(
                f"{tensors[name].file}: {name!r} has shape {list(tensors[name].shape)}; "
                f"config.json requires {list(shape)}."
            )
    for name in tensors.keys() - expected.keys():
        if name == "lm_head.weight":
            _require_same(tensors[name], tensors["model.embed_tokens.weight"], reader)
        elif not name.endswith(IGNORED_TENSORS):
            raise UserError(
                f"{tensors[name].file}: unexpected tensor {name!r}; config.json describes a model "
                "without it."
            )
    return {name: tensors[name] for name in expected}


def _require_same(head: StoredTensor, embedding: StoredTensor, reader: ByteReader) -> None:
    """Raise UserError if ``head``, the stored output matrix of a tied model, is not the embedding.

    Values are compared bit by bit.
    """
    rows = 1 << 10
    same = head.shape == embedding.shape and head.dtype == embedding.dtype
    for start in range(0, head.shape[0] if same else 0, rows):
        part = slice(start, min(start + rows, head.shape[0])), slice(0, head.shape[1])
        blocks = [read_block(reader, tensor, *part) for tensor in (head, embedding)]
        same = same and np.array_equal(blocks[0].view(np.uint8), blocks[1].view(np.uint8))
    if not same:
        raise UserError(
            f"{head.file}: 'lm_head.weight' differs from the embedding, but config.json ties the "
            "two; set tie_word_embeddings to false to use 'lm_head.weight'."
        )
