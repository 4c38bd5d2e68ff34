"""Export of parameters to a Hugging Face folder, and of LoRA adapters to a folder for ``peft``."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
import json
import math
import os
from typing import Any

from etils import epath
import jax
import ml_dtypes
import numpy as np

from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import LoraConfig
from llama_cpt.model.llama import abstract_llama
from llama_cpt.runtime.atomic import atomic_dir
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.progress import Progress
from llama_cpt.weights.hf_config import config_json
from llama_cpt.weights.hf_names import BY_OURS, TensorName, parameters_by_path
from llama_cpt.weights.hf_weights import convert
from llama_cpt.weights.safetensors import ADAPTER_CONFIG, INDEX_FILE, SINGLE_FILE, file_header

EXPORT_DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
THREADS = min(16, os.cpu_count() or 1)
PEFT_WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class ExportOptions:
    """Options of ``export_hf``."""

    dtype: str = "bfloat16"
    """The dtype of the stored tensors, a key of EXPORT_DTYPES."""
    shard_bytes: int = 5_000_000_000
    """The maximum number of tensor bytes per file. A tensor above this size gets its own file."""
    token_ids: dict[str, int | list[int] | None] = field(default_factory=dict)
    """``bos_token_id``, ``eos_token_id`` and ``pad_token_id`` of ``config.json``."""
    write_others: Callable[[epath.Path], None] | None = None
    """A function that writes more files, such as the tokenizer, into the folder before the weights
    are written."""


@dataclass(frozen=True)
class OutTensor:
    """One tensor to write: a parameter, or one layer of a stacked parameter."""

    name: TensorName
    layer: int
    shape: tuple[int, ...]

    @property
    def key(self) -> str:
        """The tensor's name in the file."""
        return self.name.tensor(self.layer)


def export_hf(
    parameter: Callable[[str], jax.Array],
    config: ModelConfig,
    output: str,
    options: ExportOptions,
) -> None:
    """Write the folder ``output``, a local path or ``gs://`` URL, in the format of transformers.

    ``parameter(path)`` returns the array of one parameter, such as ``layers/query``, on devices of
    this process. ``parameter`` is called once per path, in the order of the files, so only one
    parameter is in memory at a time. Raises UserError if ``output`` exists or cannot be written, or
    if a value overflows the dtype.
    """
    if options.dtype not in EXPORT_DTYPES:
        raise UserError(f"dtype={options.dtype!r} must be one of {', '.join(EXPORT_DTYPES)}.")
    dtype = EXPORT_DTYPES[options.dtype]
    shards = _shards(_tensors(config), dtype, options.shard_bytes)
    total_bytes = sum(math.prod(t.shape) for shard in shards for t in shard) * dtype.itemsize
    with atomic_dir(output) as folder:
        if options.write_others is not None:
            options.write_others(folder)
        with Progress(f"write {output}", total_bytes / 1e9, "GB") as progress:
            weight_map = _write_shards(folder, shards, _Parameters(parameter), dtype, progress)
        if len(shards) > 1:
            sizes = {"total_parameters": total_bytes // dtype.itemsize, "total_size": total_bytes}
            _write_json(folder / INDEX_FILE, {"metadata": sizes, "weight_map": weight_map})
        if not (folder / "generation_config.json").exists():
            values = {"_from_model_config": True, **options.token_ids}
            _write_json(folder / "generation_config.json", values)
        # Written last, because a folder without config.json does not count as a model.
        values = config_json(config, options.dtype, options.token_ids)
        _write_json(folder / "config.json", values)


def _tensors(config: ModelConfig) -> list[OutTensor]:
    """Return all tensors to write, grouped by parameter."""
    tensors = []
    for ours, parameter in parameters_by_path(abstract_llama(config)).items():
        name = BY_OURS[ours]
        shape = tuple(parameter.get_value().shape)
        layers, shape = (shape[0], shape[1:]) if name.stacked else (1, shape)
        shape = shape[::-1] if name.transposed else shape
        tensors += [OutTensor(name, layer, shape) for layer in range(layers)]
    return tensors


def _shards(tensors: list[OutTensor], dtype: np.dtype, shard_bytes: int) -> list[list[OutTensor]]:
    """Split ``tensors`` into one list per file.

    A file holds at most ``shard_bytes`` of tensors, unless it holds a single larger tensor.
    """
    shards: list[list[OutTensor]] = [[]]
    room = shard_bytes
    for tensor in tensors:
        size = math.prod(tensor.shape) * dtype.itemsize
        if shards[-1] and size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= size
    return shards


class _Parameters:
    """A cache that keeps the most recently requested parameter on the host."""

    def __init__(self, parameter: Callable[[str], jax.Array]) -> None:
        self._parameter = parameter
        self._cpu = jax.local_devices(backend="cpu")[0]
        self._path, self._array = "", np.zeros(0)

    def matrix(self, tensor: OutTensor) -> np.ndarray:
        """Return ``tensor`` as a float32 matrix in Hugging Face's orientation.

        A vector becomes a matrix with one row.
        """
        name = tensor.name
        if self._path != name.path:
            # The previous parameter is released before the next one is loaded.
            self._path, self._array = name.path, np.zeros(0)
            self._array = np.asarray(jax.device_put(self._parameter(name.path), self._cpu))
        array = self._array[tensor.layer] if name.stacked else self._array
        return array.T if name.transposed else array.reshape(-1, array.shape[-1])


def _write_shards(
    folder: epath.Path,
    shards: list[list[OutTensor]],
    parameters: _Parameters,
    dtype: np.dtype,
    progress: Progress,
) -> dict[str, str]:
    """Write one safetensors file per shard, and return a map from tensor name to file name."""
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        file = file if len(shards) > 1 else SINGLE_FILE
        with (folder / file).open("wb") as out:
            out.write(file_header([(t.key, dtype, t.shape) for t in shard]))
            for tensor in shard:
                values = _as_dtype(tensor, parameters.matrix(tensor), dtype)
                out.write(values.reshape(-1).view(np.uint8).data)
                progress.update(values.nbytes / 1e9)
                weight_map[tensor.key] = file
    return weight_map


def _as_dtype(tensor: OutTensor, matrix: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return a contiguous copy of ``matrix`` in ``dtype``, converted by several threads.

    Raises UserError if a value overflows float16.
    """
    out = np.empty(matrix.shape, dtype)
    height = max(1, -(-matrix.shape[0] // THREADS))
    stripes = [slice(top, top + height) for top in range(0, matrix.shape[0], height)]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(partial(_convert_stripe, matrix, out), stripes))
    if dtype == np.float16 and not np.isfinite(out).all():
        raise UserError(f"{tensor.key}: a value overflows float16; export bfloat16 instead.")
    return out


def _convert_stripe(matrix: np.ndarray, out: np.ndarray, rows: slice) -> None:
    with np.errstate(over="ignore"):  # The caller checks for overflow.
        convert(matrix[rows], out[rows])


def _write_json(path: epath.Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


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
                tensors[peft_tensor_name(target, factor, layer)] = stacked[layer].T.astype(dtype)
    with atomic_dir(output) as folder:
        write_others(folder)
        with (folder / PEFT_WEIGHTS_FILE).open("wb") as out:
            out.write(file_header([(name, dtype, x.shape) for name, x in tensors.items()]))
            for tensor in tensors.values():
                out.write(tensor.tobytes())
        text = json.dumps(peft_config(lora, base), indent=2) + "\n"
        # Written last, because peft does not load a folder without this file.
        (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")


def peft_tensor_name(target: str, factor: str, layer: int) -> str:
    """Return the name that peft gives to one LoRA factor of one layer.

    An example is ``base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight``.
    """
    matrix = BY_OURS[f"layers/{target}"].tensor(layer).removesuffix(".weight")
    return f"base_model.model.{matrix}.lora_{factor.upper()}.weight"


def peft_config(lora: LoraConfig, base: str) -> dict[str, Any]:
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
