"""The fields of Hugging Face's ``config.json`` that describe a Llama model.

The fields describe the same computation as transformers' LlamaForCausalLM. If an unsupported field
would change this computation, reading raises a UserError that names the field.
"""

import dataclasses
import logging
import math
from typing import Any

import numpy as np

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.runtime.logs import warn_once

logger = logging.getLogger(__name__)

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
# Value that transformers uses for an absent field: False, or the value of the named field. A null
# counts as absent.
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
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "pretraining_tp": (1, None),
    "quantization_config": (None,),
    "compression_config": (None,),
    "auto_map": (None,),
    "sliding_window": (None,),
    "use_sliding_window": (False, None),
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
FULL_ATTENTION = "full_attention"
"""The only entry of ``layer_types`` that Llama's layers can have."""
DEFAULT_ROPE_THETA = 10_000.0
"""The value that transformers uses if ``rope_theta`` is absent, as in configs of Llama 1 and 2."""
MAX_SIZE = 2**31
"""The limit of every integer in a config. JAX indexes arrays with 32-bit integers."""


def read_hf_fields(path: str) -> dict[str, Any]:
    """Return the fields of ModelConfig that the ``config.json`` at ``path`` describes.

    ``path`` is a local path or a ``gs://`` URL. ``rope_scaling`` is a dict of the fields of
    RopeScaling, or None. Raises UserError if the architecture is not Llama, or if an unsupported
    field changes the computation.
    """
    values = read_json_object(path, "copy it from the original model's folder")
    _require_llama(values, path)
    _require_neutral(values, path)
    fields = {ours: _field(values, theirs, path) for ours, theirs in FIELDS.items()}
    if values.get("head_dim") is None:
        values["head_dim"] = fields["embed_dim"] // fields["num_heads"]
    fields["head_dim"] = _number(values, "head_dim", path)
    fields["rope_theta"], fields["rope_scaling"] = _read_rope(values, path)
    return fields


def as_float32(value: Any) -> Any:
    """Return ``value`` with all its floats rounded to float32, for a comparison.

    ``value`` is a scalar, a dict of scalars or a dataclass, which is returned as a dict.
    """
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {name: as_float32(entry) for name, entry in value.items()}
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(value)) if isinstance(value, float) else value


def _require_neutral(values: dict[str, Any], path: str) -> None:
    """Raise UserError if a field changes the computation in a way that is not supported."""
    for name, neutral in NEUTRAL.items():
        # Old configs of some models contain a sliding window that this field turns off.
        if name == "sliding_window" and values.get("use_sliding_window") is False:
            continue
        if name in values and values[name] not in neutral:
            raise UserError(
                f"{path}: {name}={_short(values[name])} changes what the model computes and is "
                f"not supported; only {_short(neutral[0])} is supported."
            )
    layer_types = values.get("layer_types")
    if layer_types is not None and not (
        isinstance(layer_types, list) and all(kind == FULL_ATTENTION for kind in layer_types)
    ):
        raise UserError(
            f"{path}: layer_types={_short(layer_types)} changes what the model computes and is not "
            f"supported; only {FULL_ATTENTION!r} is supported."
        )
    if values.get("attention_dropout") not in (0, None):
        warn_once(
            logger,
            f"{path}: attention_dropout={_short(values['attention_dropout'])} is ignored: training "
            "uses no dropout. Inference never uses dropout.",
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
        value = absent if values.get(name) is None else values[name]
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
    if value >= (MAX_SIZE if whole else math.inf):
        raise UserError(f"{path}: {name}={_short(value)} is too large; correct it.")
    return value if whole else _as_float(value, name, path)


def _as_float(value: float, name: str, path: str) -> float:
    try:
        return float(value)
    except OverflowError:  # JSON integers have no upper limit.
        raise UserError(f"{path}: {name}={_short(value)} is too large; correct it.") from None


def _read_rope(values: dict[str, Any], path: str) -> tuple[float, dict[str, float] | None]:
    """Return the RoPE base and the RoPE scaling, which is None if the model uses no scaling.

    Both are read from ``rope_theta`` and ``rope_scaling``, or from ``rope_parameters``, which
    transformers writes since version 5. A null counts as absent.
    """
    present = [n for n in ("rope_parameters", "rope_scaling") if values.get(n) is not None]
    for name in present:
        if not isinstance(values[name], dict):
            raise UserError(f"{path}: {name}={_short(values[name])} must be a JSON object.")
    ropes = [{k: v for k, v in values[name].items() if v is not None} for name in present]
    found = [values.get("rope_theta"), *(rope.pop("rope_theta", None) for rope in ropes)]
    thetas = [
        _number({"rope_theta": theta}, "rope_theta", path) for theta in found if theta is not None
    ]
    scalings = [_rope_scaling(rope, path) for rope in ropes]
    if any(as_float32(theta) != as_float32(thetas[0]) for theta in thetas) or any(
        as_float32(scaling) != as_float32(scalings[0]) for scaling in scalings
    ):
        raise UserError(
            f"{path}: rope_theta and {' and '.join(present)} disagree; keep one of them."
        )
    if not thetas:
        warn_once(
            logger,
            f"{path}: 'rope_theta' is missing; {DEFAULT_ROPE_THETA:g} is used, as transformers "
            "does. If the model was trained with a different value, set it.",
        )
    return thetas[0] if thetas else DEFAULT_ROPE_THETA, scalings[0] if scalings else None


def _rope_scaling(rope: dict[str, Any], path: str) -> dict[str, float] | None:
    """Return the scaling that ``rope_scaling`` or ``rope_parameters`` without nulls describes."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    allowed = {"rope_type", "type", "partial_rotary_factor"}
    if kind == "llama3":
        allowed |= set(ROPE_SCALING.values())
    elif kind != "default":
        raise UserError(
            f"{path}: rope type {_short(kind)} is not supported; only 'default' and 'llama3' are."
        )
    for name, value in rope.items():
        if name not in allowed or (name == "partial_rotary_factor" and value != 1):
            raise UserError(
                f"{path}: the RoPE field {_short(name)[1:-1]}={_short(value)} is not supported."
            )
    if kind == "default":
        return None
    return {ours: _number(rope, theirs, path) for ours, theirs in ROPE_SCALING.items()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
