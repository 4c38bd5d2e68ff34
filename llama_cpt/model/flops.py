"""Analytic counts of a model's weights and of its floating-point operations (FLOPs) per token."""

from llama_cpt.config.model import ModelConfig


def model_flops_per_token(
    config: ModelConfig, sequence_length: int, *, frozen: bool = False
) -> float:
    """Return the FLOPs per token of training on rows of ``sequence_length`` tokens.

    The count is the numerator of the model FLOPs utilization (MFU). It is
    6 N + 6 layers heads head_dim sequence_length, as in PaLM (Chowdhery et al. 2022,
    arXiv 2204.02311, appendix B), with two differences. N counts only weights of matrix products:
    it includes the head even if the head is tied, and excludes the embedding lookup and the norms.
    Attention is counted as causal, so its term is half of PaLM's
    12 layers heads head_dim sequence_length. A multiply-add counts as 2 operations. The backward
    pass counts as two forward passes. Recomputation (remat) is not counted. If the weights are
    ``frozen``, they have no gradient, and 4 N replaces 6 N. The operations of LoRA adapters are not
    counted.
    """
    norms = (2 * config.num_layers + 1) * config.embed_dim
    weights = non_embedding_parameters(config) - norms + config.embed_dim * config.vocab_size
    query_dim = config.num_heads * config.head_dim
    per_weight = 4 if frozen else 6
    return float(per_weight * weights + 6 * config.num_layers * query_dim * sequence_length)


def non_embedding_parameters(config: ModelConfig) -> int:
    """Return the number of weights in the layers and in all norms (no embedding, no head)."""
    heads = config.num_heads + config.num_kv_heads
    attention = 2 * config.embed_dim * config.head_dim * heads
    layer = attention + 3 * config.embed_dim * config.mlp_dim + 2 * config.embed_dim
    return config.num_layers * layer + config.embed_dim
