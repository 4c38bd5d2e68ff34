"""``config.json`` is read and written, and unsupported architectures are rejected."""

from dataclasses import replace
import json

import numpy as np
import pytest

from llama_cpt.config.model import ModelConfig, RopeScaling
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.hf_config import config_json, require_same_architecture

# The published config.json of meta-llama/Llama-3.1-8B, with different whitespace.
LLAMA31_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
EXPECTED = ModelConfig(
    vocab_size=128256,
    embed_dim=4096,
    mlp_dim=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
    norm_eps=1e-5,
    tied_embeddings=False,
    context_length=131072,
)


def write(folder, values):
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


def test_published_config_is_read(tmp_path):
    assert ModelConfig.from_hf(write(tmp_path, LLAMA31_8B)) == EXPECTED


def test_rope_parameters_are_read(tmp_path):
    values = {k: v for k, v in LLAMA31_8B.items() if not k.startswith("rope")}
    rope = {**LLAMA31_8B["rope_scaling"], "rope_theta": 500000.0}
    path = write(tmp_path, {**values, "rope_parameters": rope})
    assert ModelConfig.from_hf(path) == EXPECTED


def test_absent_fields_have_the_defaults_of_transformers(tmp_path):
    values = dict(LLAMA31_8B)
    for name in ("num_key_value_heads", "tie_word_embeddings", "rope_scaling", "architectures"):
        del values[name]
    expected = replace(EXPECTED, num_kv_heads=32, rope_scaling=None)
    assert ModelConfig.from_hf(write(tmp_path, values)) == expected


@pytest.mark.parametrize(
    "changes",
    [{}, {"rope_scaling": None, "rope_theta": 1e4}, {"head_dim": 64, "tied_embeddings": True}],
)
def test_written_config_reads_back(changes, tmp_path):
    config = replace(EXPECTED, **changes)
    values = config_json(config, "float16", {"bos_token_id": 1, "eos_token_id": [2, 3]})
    assert ModelConfig.from_hf(write(tmp_path, values)) == config
    assert (values["torch_dtype"], values["eos_token_id"]) == ("float16", [2, 3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MistralForCausalLM"], "model_type": "mistral"}, "MistralForCausalLM"),
        ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, "Qwen2ForCausalLM"),
        ({"model_type": "phi3"}, "'phi3'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"pretraining_tp": 2}, "pretraining_tp=2"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "auto_map"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'low_freq_factor' is missing"),
        ({"rope_scaling": {"rope_type": "default", "mscale": 2}}, "mscale=2"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_scaling"),
        ({"rope_theta": "5e5"}, "rope_theta='5e5'"),
        ({"rope_theta": 10**400}, "rope_theta=1000"),
        ({"rope_scaling": [1]}, "rope_scaling=[1]"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
        ({"layer_types": "full_attention"}, "layer_types='full_attention'"),
        ({"sliding_window": 4096, "use_sliding_window": True}, "sliding_window=4096"),
        ({"hidden_size": 10**12}, "hidden_size=1000000000000 is too large"),
        ({"hidden_size": True}, "hidden_size=True"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps=inf"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan"),
        ({"rms_norm_eps": None}, "'rms_norm_eps' is missing"),
        ({"hidden_size": "4096"}, "hidden_size='4096'"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"num_key_value_heads": 5}, "num_kv_heads=5"),
    ],
)
def test_refused_by_name(changes, message, tmp_path):
    with pytest.raises(UserError) as error:
        ModelConfig.from_hf(write(tmp_path, {**LLAMA31_8B, **changes}))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("3", "must be a JSON object"),
        ('{"model_type": ' + "[" * 100_000, "nested more than"),
    ],
)
def test_unreadable_config_is_rejected(text, message, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        ModelConfig.from_hf(str(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": None, "mlp_bias": None, "pretraining_tp": None},
        {"attention_dropout": 0, "tie_word_embeddings": None, "head_dim": None},
        {"layer_types": ["full_attention"] * 32, "sliding_window": None},
        {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28},
        {"rope_parameters": None, "partial_rotary_factor": None, "rope_interleaved": None},
        {"rope_parameters": {**LLAMA31_8B["rope_scaling"], "rope_theta": 500000.0}},
        {
            "rope_theta": None,
            "rope_scaling": None,
            "rope_parameters": {
                **LLAMA31_8B["rope_scaling"],
                "rope_theta": 500000,
                "partial_rotary_factor": None,
                "attention_factor": None,
            },
        },
    ],
)
def test_fields_without_effect_are_accepted(changes, tmp_path):
    assert ModelConfig.from_hf(write(tmp_path, {**LLAMA31_8B, **changes})) == EXPECTED


def test_default_rope_with_null_factors_has_no_scaling(tmp_path):
    nulls = dict.fromkeys(("factor", "low_freq_factor", "original_max_position_embeddings"))
    rope = {"rope_type": "default", "rope_theta": 500000.0, **nulls}
    values = {**LLAMA31_8B, "rope_scaling": None, "rope_parameters": rope}
    assert ModelConfig.from_hf(write(tmp_path, values)) == replace(EXPECTED, rope_scaling=None)


def test_dropout_and_the_default_rope_base_are_logged_once(tmp_path, caplog):
    """Configs of Llama 1 and 2 have no ``rope_theta``. Training here has no attention dropout."""
    values = {**LLAMA31_8B, "rope_scaling": None, "attention_dropout": 0.1}
    del values["rope_theta"]
    expected = replace(EXPECTED, rope_scaling=None, rope_theta=10000.0)
    for _ in range(2):
        assert ModelConfig.from_hf(write(tmp_path, values)) == expected
    dropout, theta = (record.getMessage() for record in caplog.records)
    assert "attention_dropout=0.1 is ignored" in dropout
    assert "'rope_theta' is missing; 10000 is used" in theta


def test_constants_are_compared_as_float32():
    """Programs that hold 1e-5 as float32 write it as 9.999999747378752e-06."""
    rounded = replace(
        EXPECTED,
        norm_eps=float(np.float32(1e-5)),
        rope_theta=float(np.float32(500000.003)),
        rope_scaling=RopeScaling(8.0, 1.0 + 1e-12, 4.0, 8192),
    )
    assert rounded.norm_eps == 9.999999747378752e-06
    require_same_architecture(EXPECTED, rounded, "there")


def test_architecture_error_names_all_differing_fields():
    require_same_architecture(EXPECTED, EXPECTED, "there")
    other = replace(EXPECTED, norm_eps=1e-6, num_layers=31, rope_scaling=None)
    with pytest.raises(UserError) as error:
        require_same_architecture(other, EXPECTED, "there")
    assert str(error.value) == (
        "model.num_layers=31, but there has 32, and model.rope_scaling=None, but it has "
        "RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, "
        "original_context_length=8192), and model.norm_eps=1e-06, but it has 1e-05; both must be "
        "equal."
    )
