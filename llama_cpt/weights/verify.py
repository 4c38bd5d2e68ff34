"""Comparison of a checkpoint with a Hugging Face folder, by tensors and by logits."""

from collections.abc import Mapping
from dataclasses import dataclass
import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np

from llama_cpt.config.model import ModelConfig
from llama_cpt.model.llama import Llama, abstract_llama
from llama_cpt.runtime.errors import first_line
from llama_cpt.runtime.progress import Progress
from llama_cpt.weights.hf_config import require_same_architecture
from llama_cpt.weights.hf_names import BY_OURS, checked_tensors, parameters_by_path, with_parameters
from llama_cpt.weights.hf_weights import convert, physical_memory
from llama_cpt.weights.parameter_reader import ParameterReader
from llama_cpt.weights.safetensors import ByteReader, StoredTensor, byte_reader, read_block

BLOCK_BYTES = 16 << 20
LOGITS_TOLERANCE = 1e-3
"""Maximum allowed difference of logits, relative to the largest absolute logit. Both models compute
in float32. Rounding contributes about 1e-6 per layer."""


@dataclass(frozen=True)
class TensorDifference:
    """The difference between a tensor in a Hugging Face folder and its values in a checkpoint."""

    name: str
    values: int
    """The number of elements."""
    differing: int
    """The number of elements that differ in their bits after the values of the checkpoint are
    rounded to the tensor's dtype."""
    max_abs: float
    """The maximum absolute difference in float32, before rounding. The value is not finite if an
    element is not finite."""

    @property
    def agrees(self) -> bool:
        """True if all elements are finite and have equal bits after rounding."""
        return not self.differing and math.isfinite(self.max_abs)


@dataclass(frozen=True)
class LogitsDifference:
    """The difference between our float32 logits and those of transformers on random tokens."""

    max_abs: float
    """The maximum absolute difference."""
    kl: float
    """KL divergence KL(transformers || ours) in nats, averaged over positions."""
    tolerance: float
    """The maximum allowed ``max_abs``: LOGITS_TOLERANCE times the largest absolute logit of
    transformers."""

    @property
    def agrees(self) -> bool:
        """True if all logits are finite and ``max_abs`` does not exceed the tolerance."""
        return self.max_abs <= self.tolerance < math.inf


def compare_weights(folder: str, weights: ParameterReader) -> list[TensorDifference]:
    """Compare every tensor in ``folder`` with ``weights``, and return one difference per tensor.

    Only one parameter is in memory at a time. Raises UserError if the architectures differ.
    """
    config = ModelConfig.from_hf(folder)
    require_same_architecture(weights.config, config, folder)
    differences = []
    with byte_reader() as reader:
        tensors = checked_tensors(folder, config, reader)
        total = sum(tensor.size_bytes for tensor in tensors.values())
        with Progress(f"compare {folder}", total / 1e9, "GB") as progress:
            for ours in parameters_by_path(abstract_llama(config)):
                name = BY_OURS[ours]
                array = np.asarray(weights.parameter(ours))
                for layer, part in enumerate(array if name.stacked else [array]):
                    matrix = part.T if name.transposed else part.reshape(-1, part.shape[-1])
                    tensor = tensors[name.tensor(layer)]
                    differences.append(_compare(tensor, matrix, reader))
                    progress.update(tensor.size_bytes / 1e9)
    return differences


def compare_logits(folder: str, weights: ParameterReader) -> LogitsDifference | str:
    """Compare the logits of this package with those of transformers on equal random tokens.

    Our weights are first rounded to the types in ``folder``, because an export can have a narrower
    type than the checkpoint. ``compare_weights`` compares the weights themselves. Returns a string
    with the reason and a remedy if this machine cannot run the comparison.
    """
    if importlib.util.find_spec("transformers") is None or not importlib.util.find_spec("torch"):
        return (
            "transformers and torch are not installed; run `pip install 'torch==2.13.0' "
            "'transformers>=5.0,<6'`"
        )
    if "://" in folder:
        return (
            f"transformers cannot read {folder.split('://')[0]}:// URLs; copy the folder to a "
            "local disk"
        )
    abstract = parameters_by_path(abstract_llama(weights.config))
    # Two models in float32, plus the extra memory that transformers needs while it loads.
    needed = 12 * sum(parameter.get_value().size for parameter in abstract.values())
    if needed > physical_memory() // 2:
        return (
            f"two float32 models need about {needed / 1e9:.0f} GB, which is more than half of this "
            "machine's memory; use a machine with more memory"
        )
    length = min(64, weights.config.context_length)
    shape = (2, length)
    tokens = np.random.default_rng(0).integers(0, weights.config.vocab_size, shape, dtype=np.int32)
    try:
        theirs = _their_logits(folder, tokens)
    except Exception as error:  # transformers raises errors of many types for one bad folder.
        return (
            f"transformers cannot load {folder} ({first_line(error)}); correct the folder, or "
            "install another version of transformers"
        )
    return logits_difference(theirs, _our_logits(weights, tokens, _stored_types(folder, weights)))


def _stored_types(folder: str, weights: ParameterReader) -> dict[str, np.dtype]:
    """Return the type of each of our parameters in ``folder``, by path."""
    with byte_reader() as reader:
        tensors = checked_tensors(folder, weights.config, reader)
    names = parameters_by_path(abstract_llama(weights.config))
    return {name: tensors[BY_OURS[name].tensor(0)].dtype for name in names}


def logits_difference(theirs: np.ndarray, ours: np.ndarray) -> LogitsDifference:
    """Return the difference between ``ours`` and ``theirs``, the logits of transformers."""
    logp, logq = (np.asarray(jax.nn.log_softmax(logits)) for logits in (theirs, ours))
    with np.errstate(invalid="ignore"):
        kl = np.sum(np.exp(logp) * (logp - logq), axis=-1, dtype=np.float64).mean()
        largest = np.abs(theirs - ours).max()
    tolerance = LOGITS_TOLERANCE * np.abs(theirs).max()
    return LogitsDifference(float(largest), float(kl), float(tolerance))


def _compare(tensor: StoredTensor, matrix: np.ndarray, reader: ByteReader) -> TensorDifference:
    rows, width = tensor.matrix_shape
    height = max(1, BLOCK_BYTES // (width * tensor.dtype.itemsize))
    differing, largest = 0, np.float32(0)
    for top in range(0, rows, height):
        part = slice(top, min(top + height, rows))
        theirs = read_block(reader, tensor, part, slice(0, width))
        ours, rounded = np.empty(theirs.shape, np.float32), np.empty_like(theirs)
        convert(matrix[part], ours)
        with np.errstate(over="ignore"):
            convert(ours, rounded)
        bits = np.dtype(f"u{tensor.dtype.itemsize}")
        differing += int(np.count_nonzero(rounded.view(bits) != theirs.view(bits)))
        # np.maximum propagates NaN, which Python's max could drop.
        with np.errstate(invalid="ignore"):
            largest = np.maximum(largest, np.abs(ours - theirs.astype(np.float32)).max())
    return TensorDifference(tensor.name, rows * width, differing, float(largest))


def _our_logits(
    weights: ParameterReader, tokens: np.ndarray, types: Mapping[str, np.dtype]
) -> np.ndarray:
    abstract: Llama = abstract_llama(weights.config)
    rounded = {
        name: np.asarray(weights.parameter(name)).astype(dtype).astype(np.float32)
        for name, dtype in types.items()
    }
    model = with_parameters(abstract, rounded)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    segments = jnp.ones(tokens.shape, jnp.int32)
    return np.asarray(jax.jit(Llama.__call__)(model, jnp.asarray(tokens), positions, segments))


def _their_logits(folder: str, tokens: np.ndarray) -> np.ndarray:
    # Imported here because conversion does not need these optional packages.
    import torch
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor(tokens).long()).logits.numpy()
