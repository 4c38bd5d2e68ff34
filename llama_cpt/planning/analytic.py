"""Estimates of a training step's memory and time that are computed without compiling the step.

``plan --search`` uses both estimates. The memory estimate is a lower bound, so the search does not
compile a setting whose estimate exceeds the chip's memory. The time estimate determines the order
in which the search compiles the remaining settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
import math

from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import TrainConfig
from llama_cpt.hardware.chips import Chip
from llama_cpt.model.flops import model_flops_per_token, non_embedding_parameters

# Share of the forward pass that the backward pass recomputes, by remat policy. "dots" and "minimal"
# recompute only elementwise operations, which cost a few percent as much as the products.
RECOMPUTED_FORWARD = {"none": 0.0, "dots": 0.1, "minimal": 0.05, "full": 1.0, "offload": 1.0}


@dataclass(frozen=True)
class AnalyticMemory:
    """A lower bound on the bytes that a run needs on one device, independent of the compiler."""

    arguments: float
    """Bytes of the train state. Without LoRA, the state consists of the float32 parameters and
    AdamW's two float32 moments. With LoRA, only the base weights are counted, in the compute
    dtype."""
    gradients: float
    saved: float
    """Bytes of the activations that the forward pass saves for the backward pass."""
    gathered: float
    """Bytes of the largest matrix of one layer after it is gathered in the compute dtype."""
    loading: float = 0.0
    """Bytes of a LoRA run's base weights in float32. The weights are read in float32 before the
    first step and then cast to the compute dtype."""
    never_together: float = 0.0
    """Bytes to subtract from the sum of gradients and saved layer inputs, because not all of them
    are live at the same time. The backward pass frees the inputs of the last layers before the
    gradients of the first layers are allocated (``model/scan_layers.py``)."""

    @property
    def total(self) -> float:
        """Peak bytes of the run: the larger of the step's peak and the ``loading`` peak."""
        step = self.arguments + self.gradients + self.saved + self.gathered
        return max(step - self.never_together, self.loading)

    @property
    def alone(self) -> float:
        """Peak bytes without activations and gathered weights, for any micro-batch size."""
        return max(self.arguments + self.gradients, self.loading)


def parameters(model: ModelConfig) -> int:
    """Return the model's number of parameters, including the embedding and an untied head."""
    tables = 1 if model.tied_embeddings else 2
    return non_embedding_parameters(model) + tables * model.vocab_size * model.embed_dim


def analytic_memory(config: TrainConfig, mesh: Mapping[str, int]) -> AnalyticMemory:
    """Return the memory estimate for one device.

    ``mesh`` maps axis names to sizes; the size of a missing axis is 1.
    """
    model, tensor = config.architecture, mesh.get("tensor", 1)
    shards = mesh.get("fsdp", 1) * mesh.get("context", 1) * tensor
    count, itemsize = parameters(model) / shards, 2 if config.compute.dtype == "bfloat16" else 4
    if config.lora:
        # The adapters and their optimizer state are not counted: they are small compared with the
        # base weights.
        arguments, gradients, loading = itemsize * count, 0.0, 4 * count
    else:
        # All are float32: a weight takes 4 bytes, AdamW's two moments 8 and the gradient 4.
        arguments, gradients, loading = 12 * count, 4 * count, 0.0
    layers, saved = non_embedding_parameters(model), _saved_bytes(config, mesh, itemsize)
    columns = max(model.mlp_dim, model.num_heads * model.head_dim)
    gathered = model.embed_dim * columns / tensor * itemsize
    never_together = 0.0
    # With several micro-batches, the gradients are accumulated in a buffer that is live for the
    # whole step, so all gradients and all saved inputs are live at the same time.
    if config.compute.remat == "full" and config.num_microbatches == 1 and not config.lora:
        layer_gradients = 4 * layers / shards
        # The backward pass has two loops. Let g be the bytes of all gradients, s the bytes of all
        # saved inputs, and x the share of the layers in the loop that runs first. The peaks of the
        # two loops are x g + s and g + (1 - x) s. Their maximum is smallest if they are equal, at
        # x = g / (g + s); it is then g + s - g s / (g + s).
        never_together = layer_gradients * saved / (layer_gradients + saved)
    return AnalyticMemory(arguments, gradients, saved, gathered, loading, never_together)


def analytic_seconds(config: TrainConfig, mesh: Mapping[str, int], chip: Chip) -> float:
    """Return an estimate of the seconds per step if communication does not overlap with compute.

    The estimate is accurate enough to order settings, but it does not predict the time of a step.
    """
    model, tensor, context = config.architecture, mesh.get("tensor", 1), mesh.get("context", 1)
    tokens = config.global_batch_size * config.data.sequence_length / math.prod(mesh.values())
    flops = tokens * model_flops_per_token(model, config.data.sequence_length)
    recomputed = RECOMPUTED_FORWARD[config.compute.remat]
    # Each micro-batch gathers the weights in bfloat16 twice, for the forward pass and for the
    # backward pass, and reduce-scatters the gradients in float32. Recomputation reuses the weights
    # that were gathered for the backward pass.
    weights = config.num_microbatches * (2 * 2 + 4) * parameters(model) / tensor
    # Tensor parallelism: in each layer, attention and the MLP each need one bfloat16 all-reduce in
    # the forward pass and one in the backward pass. In a ring all-reduce over n devices, a device
    # receives 2 * (n - 1) / n of the array.
    local = tokens * tensor * model.embed_dim * model.num_layers
    sums = (4 + 2 * recomputed) * 2 * 2 * local * (tensor - 1) / tensor
    # Context parallelism: a device gathers the keys and values of the rest of its rows and
    # scatters their gradients.
    pair = 2 * 2 * model.num_kv_heads * model.head_dim * model.num_layers
    keys = (2 + recomputed) * tokens * (context - 1) * pair
    communication = (weights + sums + keys) / chip.ici_bandwidth
    # The forward pass takes one third of the model's FLOPs, and the backward pass takes the rest.
    return flops * (1 + recomputed / 3) / chip.peak_flops + communication


def _saved_bytes(config: TrainConfig, mesh: Mapping[str, int], itemsize: int) -> float:
    """Return the bytes of the activations that one device saves for the backward pass."""
    model, tensor = config.architecture, mesh.get("tensor", 1)
    batch_shards = math.prod(size for axis, size in mesh.items() if axis != "tensor")
    rows = config.microbatch_rows
    # Bytes of one feature for all tokens of the device's part of a micro-batch in all layers.
    tokens = rows * config.data.sequence_length / batch_shards * model.num_layers * itemsize
    if config.compute.remat == "offload":
        return 0.0
    if config.compute.remat == "full":
        return tokens * model.embed_dim
    # Saved per token and layer: query, key, value and the attention output; three arrays of width
    # embed_dim; the outputs of the MLP's gate and up matrices.
    heads = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    return tokens * (3 * model.embed_dim + (heads + 2 * model.mlp_dim) / tensor)
