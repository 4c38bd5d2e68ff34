"""Hugging Face's ``config.json`` of a model, for writing and for comparison."""

from collections.abc import Mapping
from typing import Any

from llama_cpt.config.hf_fields import FIELDS, ROPE_SCALING, as_float32
from llama_cpt.config.model import ModelConfig
from llama_cpt.runtime.errors import UserError

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def config_json(
    config: ModelConfig, dtype: str, token_ids: Mapping[str, int | list[int] | None]
) -> dict[str, Any]:
    """Return the contents of ``config.json`` for a model stored in ``dtype``.

    ``token_ids`` contains ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``. Versions 4 and 5
    of transformers can read this file.
    """
    rope: dict[str, Any] | None = None
    if config.rope_scaling:
        rope = {ROPE_SCALING[k]: v for k, v in vars(config.rope_scaling).items()}
        rope["rope_type"] = "llama3"
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        **{name: token_ids.get(name) for name in TOKEN_IDS},
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "mlp_bias": False,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rope_scaling": rope,
        "rope_theta": config.rope_theta,
        "torch_dtype": dtype,
        "use_cache": True,
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
    }


LEAVE_OUT = "both must be equal; to use the latter, leave model out of the config"
"""The remedy if the first of two architectures is that of a config."""


def require_same_architecture(
    expected: ModelConfig, found: ModelConfig, where: str, remedy: str = "both must be equal"
) -> None:
    """Raise UserError if the architectures differ. The message names all differing fields.

    The message also names ``where``, the file or folder of ``found``, and ``remedy``. Constants are
    compared as float32, the type in which they are used: some programs write a ``rms_norm_eps`` of
    1e-5 as 9.999999747378752e-06.
    """
    differing = [
        (name, value, getattr(found, name))
        for name, value in vars(expected).items()
        if as_float32(value) != as_float32(getattr(found, name))
    ]
    if differing:
        name, value, other = differing[0]
        more = "".join(f", and model.{n}={v}, but it has {o}" for n, v, o in differing[1:])
        raise UserError(f"model.{name}={value}, but {where} has {other}{more}; {remedy}.")
