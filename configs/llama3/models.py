"""Published Llama 3 architectures, with the values of each model's ``config.json``."""

from dataclasses import replace

from llama_cpt.config.model import ModelConfig, RopeScaling

LLAMA3_8B = ModelConfig(
    vocab_size=128256,
    embed_dim=4096,
    mlp_dim=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rope_theta=500000.0,
    rope_scaling=None,
    norm_eps=1e-5,
    tied_embeddings=False,
    context_length=8192,
)

LLAMA3_70B = replace(LLAMA3_8B, embed_dim=8192, mlp_dim=28672, num_layers=80, num_heads=64)

LLAMA31_SCALING = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context_length=8192
)
LLAMA31_8B = replace(LLAMA3_8B, rope_scaling=LLAMA31_SCALING, context_length=131072)
LLAMA31_70B = replace(LLAMA3_70B, rope_scaling=LLAMA31_SCALING, context_length=131072)

LLAMA32_1B = replace(
    LLAMA31_8B,
    embed_dim=2048,
    mlp_dim=8192,
    num_layers=16,
    head_dim=64,
    rope_scaling=replace(LLAMA31_SCALING, factor=32.0),
    tied_embeddings=True,
)
LLAMA32_3B = replace(LLAMA32_1B, embed_dim=3072, num_layers=28, num_heads=24, head_dim=128)
