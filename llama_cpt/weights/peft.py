"""Export of LoRA adapters to a folder that ``peft`` loads on top of a Hugging Face model."""

from collections.abc import Callable
import json
from typing import Any

from etils import epath
import jax
import numpy as np

from llama_cpt.config.schema import LoraConfig
from llama_cpt.runtime.atomic_dir import atomic_dir
from llama_cpt.weights.hf_names import BY_OURS
from llama_cpt.weights.safetensors import file_header

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


def export_peft(
    stored: Callable[[str], jax.Array],
    lora: LoraConfig,
    output: str,
    *,
    num_layers: int,
    dtype: np.dtype,
    base: str,
    write_others: Callable[[epath.Path], None],
) -> None:
    """Write the adapters in ``dtype`` and their ``adapter_config.json`` into the folder ``output``.

    ``stored(path)`` returns one LoRA factor, such as ``query/a``. ``base`` is the model onto which
    peft loads the adapters. ``write_others(folder)`` writes more files, such as the model card.
    Raises UserError if ``output`` exists or cannot be written.
    """
    tensors = {}
    for target in lora.targets:
        for factor in ("a", "b"):
            stacked = np.asarray(stored(f"{target}/{factor}"))
            for layer in range(num_layers):
                tensors[tensor_name(target, factor, layer)] = stacked[layer].T.astype(dtype)
    with atomic_dir(output) as folder:
        write_others(folder)
        with (folder / WEIGHTS_FILE).open("wb") as out:
            out.write(file_header([(name, dtype, x.shape) for name, x in tensors.items()]))
            for tensor in tensors.values():
                out.write(tensor.tobytes())
        text = json.dumps(adapter_config(lora, base), indent=2) + "\n"
        # Written last, because peft does not load a folder without this file.
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def tensor_name(target: str, factor: str, layer: int) -> str:
    """Return the name that peft gives to one LoRA factor of one layer.

    An example is ``base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight``.
    """
    matrix = BY_OURS[f"layers/{target}"].tensor(layer).removesuffix(".weight")
    return f"base_model.model.{matrix}.lora_{factor.upper()}.weight"


def adapter_config(lora: LoraConfig, base: str) -> dict[str, Any]:
    """Return the contents of ``adapter_config.json``, the fields of peft's ``LoraConfig``."""
    modules = [BY_OURS[f"layers/{target}"].hf_name.split(".")[-2] for target in lora.targets]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
