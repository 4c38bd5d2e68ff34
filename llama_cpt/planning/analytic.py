"""Memory and time of a step by arithmetic, before anything is compiled: what cannot fit is not
tried, and what is likely to be fast is tried first."""

from collections.abc import Mapping
from dataclasses import dataclass
import math

from llama_cpt.config.schema import ModelConfig, TrainConfig
from llama_cpt.hardware.chips import Chip
from llama_cpt.model.flops import model_flops_per_token, non_embedding_parameters

# Forward passes that the backward pass repeats, in forward passes.
REPEATED = {"none": 0.0, "dots": 0.1, "minimal": 0.05, "full": 1.0, "offload": 1.0}


@dataclass(frozen=True)
class AnalyticMemory:
    """Bytes of one device that no compiler can avoid."""

    arguments: float
    """Parameters and moments, float32."""
    gradients: float
    saved: float
    """What the forward pass keeps for the backward pass."""
    gathered: float
    """A layer's largest matrix in the compute type; the others may come after it."""
    loading: float = 0.0
    """Adapters' weights as they are read, float32, before any step."""
    never_together: float = 0.0
    """Of gradients and saved inputs: the second loop's inputs are gone when the first's gradients
    are made (``model/stack.py``)."""

    @property
    def total(self) -> float:
        """What is there at once."""
        held = self.arguments + self.gradients + self.saved + self.gathered
        return max(held - self.never_together, self.loading)

    @property
    def alone(self) -> float:
        """Without any row."""
        return max(self.arguments + self.gradients, self.loading)


def parameters(model: ModelConfig) -> int:
    """All weights, the embedding and an untied head included."""
    tables = 1 if model.tied_embeddings else 2
    return non_embedding_parameters(model) + tables * model.vocab_size * model.embed_dim


def analytic_memory(config: TrainConfig, mesh: Mapping[str, int]) -> AnalyticMemory:
    """Of one device of a mesh of these axis sizes; missing ones are 1."""
    model, tensor = config.model, mesh.get("tensor", 1)
    parts = mesh.get("fsdp", 1) * mesh.get("context", 1) * tensor
    count, width = parameters(model) / parts, 2 if config.compute.dtype == "bfloat16" else 4
    if config.lora:
        arguments, gradients, loading = width * count, 0.0, 4 * count
    else:
        arguments, gradients, loading = 12 * count, 4 * count, 0.0
    layers, saved = non_embedding_parameters(model), _saved(config, mesh, width)
    columns = max(model.mlp_dim, model.num_heads * model.head_dim)
    gathered = model.embed_dim * columns / tensor * width
    apart = 0.0
    # Several micro-batches add up in gradients that are always there.
    if config.compute.remat == "full" and config.num_microbatches == 1 and not config.lora:
        made = 4 * layers / parts
        apart = made * saved / (made + saved)
    return AnalyticMemory(arguments, gradients, saved, gathered, loading, apart)


def analytic_seconds(config: TrainConfig, mesh: Mapping[str, int], chip: Chip) -> float:
    """A step's products and gathers in turn: good for an order, not for a promise."""
    model, tensor, context = config.model, mesh.get("tensor", 1), mesh.get("context", 1)
    tokens = config.global_batch_size * config.data.sequence_length / math.prod(mesh.values())
    flops = tokens * model_flops_per_token(model, config.data.sequence_length)
    repeated = REPEATED[config.compute.remat]
    # Each micro-batch gathers weights forward and backward, in bfloat16 (what is recomputed shares
    # the second), and scatters gradients, in float32.
    weights = config.num_microbatches * (2 * 2 + 4) * parameters(model) / tensor
    # Two sums of the layer's output in each direction.
    local = tokens * tensor * model.embed_dim * model.num_layers
    sums = (4 + 2 * repeated) * 2 * 2 * local * (tensor - 1) / tensor
    # Keys and values of the row's other parts, gathered; their gradients, scattered.
    pair = 2 * 2 * model.num_kv_heads * model.head_dim * model.num_layers
    keys = (2 + repeated) * tokens * (context - 1) * pair
    sent = (weights + sums + keys) / chip.ici_bandwidth
    return flops * (1 + repeated / 3) / chip.peak_flops + sent


def _saved(config: TrainConfig, mesh: Mapping[str, int], width: int) -> float:
    model, tensor = config.model, mesh.get("tensor", 1)
    shared = math.prod(size for axis, size in mesh.items() if axis != "tensor")
    rows = config.microbatch_rows
    tokens = rows * config.data.sequence_length / shared * model.num_layers * width
    if config.compute.remat == "offload":
        return 0.0
    if config.compute.remat == "full":
        return tokens * model.embed_dim
    heads = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    return tokens * (3 * model.embed_dim + (heads + 2 * model.mlp_dim) / tensor)
