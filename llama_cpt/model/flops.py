"""Analytic counts of a model's weights and of its operations per token, the numerator of MFU."""

from llama_cpt.config.schema import ModelConfig


def model_flops_per_token(
    config: ModelConfig, sequence_length: int, *, frozen: bool = False
) -> float:
    """Return the floating-point operations per token of training on rows of ``sequence_length``.

    6 N + 6 layers heads head_dim sequence_length, as in PaLM (Chowdhery et al. 2022,
    arXiv 2204.02311, appendix B) with two differences: N counts the weights of matrix products
    (the head even if it is tied, but neither the embedding lookup nor the norms), and attention is
    counted as causal, half of PaLM's 12 layers heads head_dim sequence_length. A multiply-add is
    2 operations, and the backward pass costs twice the forward. Recomputation (remat) is not
    counted. ``frozen`` weights have no gradient, so they count 4 N instead of 6 N; the operations
    of adapters are not counted.
    """
    norms = (2 * config.num_layers + 1) * config.embed_dim
    weights = non_embedding_parameters(config) - norms + config.embed_dim * config.vocab_size
    query_dim = config.num_heads * config.head_dim
    per_weight = 4 if frozen else 6
    return float(per_weight * weights + 6 * config.num_layers * query_dim * sequence_length)


def non_embedding_parameters(config: ModelConfig) -> int:
    """Return the number of weights in the layers and norms, without the embedding and the head."""
    heads = config.num_heads + config.num_kv_heads
    attention = 2 * config.embed_dim * config.head_dim * heads
    layer = attention + 3 * config.embed_dim * config.mlp_dim + 2 * config.embed_dim
    return config.num_layers * layer + config.embed_dim
