"""Tiny random Hugging Face models, with which tests compare ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers

SMALL = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.15,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
NAMES = ["<|begin_of_text|>", "<|end_of_text|>"]


def random_llama(seed: int = 0, **fields: Any) -> transformers.LlamaForCausalLM:
    """Return a float32 Llama in which all tensors are random, the norms included."""
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SMALL, **fields}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model.eval()


def save_llama(
    folder: Path, dtype: torch.dtype = torch.float32, shard: str = "1GB", **fields: Any
) -> str:
    """Save ``random_llama(**fields)`` in ``dtype`` to ``folder``, and return the folder's path."""
    model: Any = random_llama(**fields)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return str(folder)


def token_rows(vocab_size: int, rows: int, length: int) -> np.ndarray:
    """Return random int32 tokens of shape (rows, length)."""
    return np.random.default_rng(1).integers(0, vocab_size, (rows, length), dtype=np.int32)


def add_tokenizer(folder: Path, first: int = 0, template: str = "") -> None:
    """Write a tokenizer of 126 bytes, beginning with byte ``first``, and a chat template."""
    vocabulary = {f"<0x{first + number:02X}>": number for number in range(126)}
    model = tokenizers.models.BPE(vocabulary, [], byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens(NAMES)
    tokenizer.save(str(folder / "tokenizer.json"))
    values = dict(zip(("bos_token", "eos_token"), NAMES, strict=True))
    values |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    values |= {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
