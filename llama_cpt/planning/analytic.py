"""Analytic estimates of the memory and time of a step, computed before anything is compiled.

The search uses the memory estimate, a lower bound, to skip settings that cannot fit, and the time
estimate to order the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
import math

from llama_cpt.config.schema import ModelConfig, TrainConfig
from llama_cpt.hardware.chips import Chip
from llama_cpt.model.flops import model_flops_per_token, non_embedding_parameters

# Share of the forward pass that the backward pass recomputes, by remat policy. "dots" and "minimal"
# recompute elementwise operations only, which cost a few percent of the products.
RECOMPUTED_FORWARD = {"none": 0.0, "dots": 0.1, "minimal": 0.05, "full": 1.0, "offload": 1.0}


@dataclass(frozen=True)
class AnalyticMemory:
    """Lower bound on the bytes that one device needs, whatever the compiler does."""

    arguments: float
    """Parameters and, without LoRA, the two moments of the optimizer, all float32."""
    gradients: float
    saved: float
    """Activations that the forward pass keeps for the backward pass."""
    gathered: float
    """The largest matrix of one layer, gathered in the compute dtype."""
    loading: float = 0.0
    """Base weights of a LoRA run in float32, as they are read before the first step."""
    never_together: float = 0.0
    """Bytes of gradients and saved layer inputs that are never live at the same time: the inputs
    of the second part of the layers are freed before the gradients of the first part are
    allocated (``model/scan_layers.py``)."""

    @property
    def total(self) -> float:
        """Peak bytes: everything that is live at once, or the weights while they are read."""
        step = self.arguments + self.gradients + self.saved + self.gathered
        return max(step - self.never_together, self.loading)

    @property
    def alone(self) -> float:
        """Bytes needed independent of the number of rows: no activations."""
        return max(self.arguments + self.gradients, self.loading)


def parameters(model: ModelConfig) -> int:
    """Return the number of weights, the embedding and an untied head included."""
    tables = 1 if model.tied_embeddings else 2
    return non_embedding_parameters(model) + tables * model.vocab_size * model.embed_dim


def analytic_memory(config: TrainConfig, mesh: Mapping[str, int]) -> AnalyticMemory:
    """Return the memory of one device of a mesh with these axis sizes; a missing axis is 1."""
    model, tensor = config.model, mesh.get("tensor", 1)
    shards = mesh.get("fsdp", 1) * mesh.get("context", 1) * tensor
    count, itemsize = parameters(model) / shards, 2 if config.compute.dtype == "bfloat16" else 4
    if config.lora:
        # The adapters themselves are too small to count.
        arguments, gradients, loading = itemsize * count, 0.0, 4 * count
    else:
        # float32: 4 bytes of the weight and 8 of AdamW's two moments; 4 of the gradient.
        arguments, gradients, loading = 12 * count, 4 * count, 0.0
    layers, saved = non_embedding_parameters(model), _saved_bytes(config, mesh, itemsize)
    columns = max(model.mlp_dim, model.num_heads * model.head_dim)
    gathered = model.embed_dim * columns / tensor * itemsize
    never_together = 0.0
    # With several micro-batches the gradients are accumulated in a buffer that lives for the whole
    # step, so nothing is saved then.
    if config.compute.remat == "full" and config.num_microbatches == 1 and not config.lora:
        layer_gradients = 4 * layers / shards
        # With a share x of the layers in the second part, gradients g and inputs s, the peaks of
        # the two loops are x g + s and g + (1 - x) s. The best x makes them equal.
        never_together = layer_gradients * saved / (layer_gradients + saved)
    return AnalyticMemory(arguments, gradients, saved, gathered, loading, never_together)


def analytic_seconds(config: TrainConfig, mesh: Mapping[str, int], chip: Chip) -> float:
    """Return seconds per step without overlap: good for ordering settings, not a prediction."""
    model, tensor, context = config.model, mesh.get("tensor", 1), mesh.get("context", 1)
    tokens = config.global_batch_size * config.data.sequence_length / math.prod(mesh.values())
    flops = tokens * model_flops_per_token(model, config.data.sequence_length)
    recomputed = RECOMPUTED_FORWARD[config.compute.remat]
    # Each micro-batch gathers the weights in bfloat16 for the forward and for the backward pass
    # (recomputation uses the second gather) and reduce-scatters the gradients in float32.
    weights = config.num_microbatches * (2 * 2 + 4) * parameters(model) / tensor
    # Tensor parallelism: two all-reduces of each layer's output per direction, in bfloat16; a ring
    # all-reduce receives 2 * (n - 1) / n of the array.
    local = tokens * tensor * model.embed_dim * model.num_layers
    sums = (4 + 2 * recomputed) * 2 * 2 * local * (tensor - 1) / tensor
    # Context parallelism: keys and values of the other parts of a row are gathered, their gradients
    # are scattered.
    pair = 2 * 2 * model.num_kv_heads * model.head_dim * model.num_layers
    keys = (2 + recomputed) * tokens * (context - 1) * pair
    communication = (weights + sums + keys) / chip.ici_bandwidth
    # A forward pass is one third of the model's FLOPs, which count forward and backward.
    return flops * (1 + recomputed / 3) / chip.peak_flops + communication


def _saved_bytes(config: TrainConfig, mesh: Mapping[str, int], itemsize: int) -> float:
    """Return the bytes of activations that one device keeps for the backward pass."""
    model, tensor = config.model, mesh.get("tensor", 1)
    batch_shards = math.prod(size for axis, size in mesh.items() if axis != "tensor")
    rows = config.microbatch_rows
    # Bytes per feature: tokens of one device, times the layers.
    tokens = rows * config.data.sequence_length / batch_shards * model.num_layers * itemsize
    if config.compute.remat == "offload":
        return 0.0
    if config.compute.remat == "full":
        return tokens * model.embed_dim
    # Query, key, value and attention output; three arrays of embed_dim; gate and up of the MLP.
    heads = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    return tokens * (3 * model.embed_dim + (heads + 2 * model.mlp_dim) / tensor)
