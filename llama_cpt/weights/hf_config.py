"""Conversion between Hugging Face's ``config.json`` and ModelConfig.

A ModelConfig that is read from ``config.json`` describes the same computation as transformers'
LlamaForCausalLM. If an unsupported field would change this computation, reading raises a UserError
that names the field.
"""

from typing import Any

from llama_cpt.config.schema import ModelConfig, RopeScaling
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.safetensors import read_json

# Our field -> Hugging Face's field, for reading and writing. Code below converts head_dim and RoPE.
FIELDS = {
    "vocab_size": "vocab_size",
    "embed_dim": "hidden_size",
    "mlp_dim": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
    "context_length": "max_position_embeddings",
}
# Value that transformers uses for an absent field: False, or the value of the named field.
ABSENT = {"num_key_value_heads": "num_attention_heads", "tie_word_embeddings": False}

ROPE_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_context_length": "original_max_position_embeddings",
}

# Fields that change the computation, with the values for which they have no effect. Fields that
# Llama does not have belong to related architectures.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_dropout": (0, None),
    "pretraining_tp": (1, None),
    "quantization_config": (None,),
    "compression_config": (None,),
    "auto_map": (None,),
    "sliding_window": (None,),
    "use_sliding_window": (False, None),
    "layer_types": (None,),
    "no_rope_layers": (None,),
    "partial_rotary_factor": (1, None),
    "rope_interleaved": (False, None),
    "qkv_bias": (False, None),
    "use_qk_norm": (False, None),
    "qk_layernorm": (False, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "attention_multiplier": (None,),
    "embedding_multiplier": (1, None),
    "residual_multiplier": (1, None),
    "logits_scaling": (1, None),
    "logit_scale": (1, None),
    "num_local_experts": (None,),
    "num_experts": (None,),
    "is_encoder_decoder": (False, None),
}


def read_config(folder: str) -> ModelConfig:
    """Return the architecture of a Hugging Face folder, which is a local path or a ``gs://`` URL.

    Raises UserError if the architecture is not Llama, or if an unsupported field changes the
    computation.
    """
    path = f"{folder}/config.json"
    values = read_json(path)
    _require_llama(values, path)
    for name, neutral in NEUTRAL.items():
        if name in values and values[name] not in neutral:
            raise UserError(
                f"{path}: {name}={_short(values[name])} changes what the model computes and is "
                f"not supported; only {_short(neutral[0])} is supported."
            )
    fields = {ours: _field(values, theirs, path) for ours, theirs in FIELDS.items()}
    if values.get("head_dim") is None:
        values["head_dim"] = fields["embed_dim"] // fields["num_heads"]
    fields["head_dim"] = _number(values, "head_dim", path)
    fields["rope_theta"], fields["rope_scaling"] = _read_rope(values, path)
    fields["norm_eps"] = float(fields["norm_eps"])
    try:
        return ModelConfig(**fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def config_json(
    config: ModelConfig, dtype: str, *, bos_id: int | None, eos_id: int | list[int] | None
) -> dict[str, Any]:
    """Return the contents of ``config.json`` for a model stored in ``dtype``.

    Versions 4 and 5 of transformers can read this file.
    """
    rope: dict[str, Any] | None = None
    if config.rope_scaling:
        rope = {ROPE_SCALING[k]: v for k, v in vars(config.rope_scaling).items()}
        rope["rope_type"] = "llama3"
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
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


def generation_config_json(bos_id: int | None, eos_id: int | list[int] | None) -> dict[str, Any]:
    """Return the contents of ``generation_config.json``. Generation stops at ``eos_id``."""
    return {"_from_model_config": True, "bos_token_id": bos_id, "eos_token_id": eos_id}


def require_same_architecture(expected: ModelConfig, found: ModelConfig, where: str) -> None:
    """Raise UserError if the architectures differ. The message names the first differing field.

    The message also names ``where``, which is the file or folder of ``found``.
    """
    for name, value in vars(expected).items():
        if value != getattr(found, name):
            raise UserError(
                f"model.{name}={value}, but {where} has {getattr(found, name)}; both must be equal."
            )


def _require_llama(values: dict[str, Any], path: str) -> None:
    architectures = values.get("architectures")
    if architectures is not None and architectures != ["LlamaForCausalLM"]:
        raise UserError(
            f"{path}: architectures={_short(architectures)}; only LlamaForCausalLM is supported."
        )
    if values.get("model_type") != "llama":
        raise UserError(
            f"{path}: model_type={_short(values.get('model_type'))}; only 'llama' is supported."
        )


def _field(values: dict[str, Any], name: str, path: str) -> Any:
    absent = ABSENT.get(name)
    if values.get(name) is None and isinstance(absent, str):
        return _field(values, absent, path)
    if isinstance(absent, bool):
        value = values.get(name, absent)
        if not isinstance(value, bool):
            raise UserError(f"{path}: {name}={_short(value)} must be true or false.")
        return value
    return _number(values, name, path)


def _number(values: dict[str, Any], name: str, path: str) -> Any:
    value = values.get(name)
    if value is None:
        raise UserError(
            f"{path}: {name!r} is missing; copy it from the original model's config.json."
        )
    whole = name not in ("rms_norm_eps", "rope_theta", *list(ROPE_SCALING.values())[:3])
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not value > 0:
        kind = "integer" if whole else "number"
        raise UserError(f"{path}: {name}={_short(value)} must be a positive {kind}.")
    return value


def _read_rope(values: dict[str, Any], path: str) -> tuple[float, RopeScaling | None]:
    """Return the RoPE base and the RoPE scaling, which is None if the model uses no scaling.

    Both are read from ``rope_theta`` and ``rope_scaling``, or from ``rope_parameters``.
    """
    present = [n for n in ("rope_parameters", "rope_scaling") if values.get(n) is not None]
    for name in present:
        if not isinstance(values[name], dict):
            raise UserError(f"{path}: {name}={_short(values[name])} must be a JSON object.")
    ropes = [dict(values[name]) for name in present]
    thetas = [values.get("rope_theta"), *(rope.pop("rope_theta", None) for rope in ropes)]
    thetas = [theta for theta in thetas if theta is not None]
    if any(theta != thetas[0] for theta in thetas) or any(rope != ropes[0] for rope in ropes):
        raise UserError(
            f"{path}: rope_theta and {' and '.join(present)} disagree; keep one of them."
        )
    rope = ropes[0] if ropes else {}
    if not thetas:
        raise UserError(
            f"{path}: 'rope_theta' is missing; set the value that the model was trained with "
            "(transformers would use 10000)."
        )
    theta = float(_number({"rope_theta": thetas[0]}, "rope_theta", path))
    kind = rope.get("rope_type", rope.get("type", "default"))
    allowed = {"rope_type", "type", "partial_rotary_factor"}
    if kind == "llama3":
        allowed |= set(ROPE_SCALING.values())
    elif kind != "default":
        raise UserError(
            f"{path}: rope type {kind!r} is not supported; only 'default' and 'llama3' are."
        )
    for name, value in rope.items():
        if name not in allowed or (name == "partial_rotary_factor" and value != 1):
            raise UserError(f"{path}: the RoPE field {name}={_short(value)} is not supported.")
    if kind == "default":
        return theta, None
    scaling = {ours: _number(rope, theirs, path) for ours, theirs in ROPE_SCALING.items()}
    length = scaling.pop("original_context_length")
    floats = {name: float(value) for name, value in scaling.items()}
    return theta, RopeScaling(**floats, original_context_length=length)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
