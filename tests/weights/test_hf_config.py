"""``config.json`` is read and written, and unsupported architectures are rejected."""

from dataclasses import replace
import json

import pytest

from llama_cpt.config.schema import ModelConfig, RopeScaling
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.hf_config import config_json, read_config, require_same_architecture

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
    assert read_config(write(tmp_path, LLAMA31_8B)) == EXPECTED


def test_rope_parameters_are_read(tmp_path):
    values = {k: v for k, v in LLAMA31_8B.items() if not k.startswith("rope")}
    rope = {**LLAMA31_8B["rope_scaling"], "rope_theta": 500000.0}
    path = write(tmp_path, {**values, "rope_parameters": rope})
    assert read_config(path) == EXPECTED


def test_absent_fields_have_the_defaults_of_transformers(tmp_path):
    values = dict(LLAMA31_8B)
    for name in ("num_key_value_heads", "tie_word_embeddings", "rope_scaling", "architectures"):
        del values[name]
    expected = replace(EXPECTED, num_kv_heads=32, rope_scaling=None)
    assert read_config(write(tmp_path, values)) == expected


@pytest.mark.parametrize(
    "changes",
    [{}, {"rope_scaling": None, "rope_theta": 1e4}, {"head_dim": 64, "tied_embeddings": True}],
)
def test_written_config_reads_back(changes, tmp_path):
    config = replace(EXPECTED, **changes)
    values = config_json(config, "float16", bos_id=1, eos_id=[2, 3])
    assert read_config(write(tmp_path, values)) == config
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
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"pretraining_tp": 2}, "pretraining_tp=2"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "auto_map"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'low_freq_factor' is missing"),
        ({"rope_scaling": {"rope_type": "default", "mscale": 2}}, "mscale=2"),
        ({"rope_theta": None}, "'rope_theta' is missing"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_scaling"),
        ({"rms_norm_eps": None}, "'rms_norm_eps' is missing"),
        ({"hidden_size": "4096"}, "hidden_size='4096'"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"num_key_value_heads": 5}, "num_kv_heads=5"),
    ],
)
def test_refused_by_name(changes, message, tmp_path):
    with pytest.raises(UserError) as error:
        read_config(write(tmp_path, {**LLAMA31_8B, **changes}))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"), [(None, "no such file"), ("{", "not JSON"), ("3", "must be a JSON object")]
)
def test_unreadable_config_is_rejected(text, message, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(str(tmp_path))


def test_require_equal_names_the_field():
    require_same_architecture(EXPECTED, EXPECTED, "there")
    with pytest.raises(UserError, match="model.norm_eps=1e-06, but there has 1e-05"):
        require_same_architecture(replace(EXPECTED, norm_eps=1e-6), EXPECTED, "there")
