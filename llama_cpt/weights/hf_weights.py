"""Streamed loading of Hugging Face safetensors into a sharded Llama.

Each process reads only the slices that its devices need. The process reads these slices in blocks,
converts each block to float32, and writes the values directly into the final buffer. Peak host
memory is therefore the size of the arrays plus about one block per thread.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import MeshConfig
from llama_cpt.model.llama import Llama, abstract_llama
from llama_cpt.parallel.mesh import make_mesh, with_shardings
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.progress import Progress
from llama_cpt.weights.hf_config import require_same_architecture
from llama_cpt.weights.hf_names import (
    BY_OURS,
    TensorName,
    checked_tensors,
    parameters_by_path,
    with_parameters,
)
from llama_cpt.weights.hub import resolve
from llama_cpt.weights.safetensors import ByteReader, StoredTensor, byte_reader, read_block

BLOCK_BYTES = 4 << 20
# Side of the square tiles in which matrices are transposed. A source tile and a destination tile
# take at most 128 KiB together, which fits into the L2 cache of one core.
TILE = 128
# Alignment in bytes that lets XLA on CPU use a NumPy buffer without a copy.
ALIGNMENT = 64
MAX_THREADS = 16


def load_hf(
    path: str,
    config: ModelConfig | None = None,
    mesh: Mesh | None = None,
    compute_dtype: Any = jnp.float32,
    *,
    remat: str = "none",
    attention: str = "reference",
) -> Llama:
    """Load a Hugging Face folder, ``gs://`` URL or hub name as a float32 Llama on ``mesh``.

    If ``config`` is given, it must equal the folder's config. If ``mesh`` is None, the model is on
    one device and can be called without a mesh context. Raises UserError, before weights are
    loaded, if the folder is missing or damaged, or if it does not hold a supported model.
    """
    folder = resolve(path)
    found = ModelConfig.from_hf(folder)
    if config is not None:
        require_same_architecture(config, found, folder)
    mesh = mesh or make_mesh(MeshConfig(), jax.local_devices()[:1])
    abstract = abstract_llama(found, compute_dtype=compute_dtype, remat=remat, attention=attention)
    abstract = with_shardings(abstract, mesh)
    with byte_reader() as reader:
        tensors = checked_tensors(folder, found, reader)
        plans = {
            ours: _plan(BY_OURS[ours], parameter.get_value(), tensors)
            for ours, parameter in parameters_by_path(abstract).items()
        }
        _require_memory([plan.buffer_bytes for plan in plans.values()], mesh, folder)
        total = sum(block.size_bytes for plan in plans.values() for block in plan.blocks)
        with Progress(f"read {folder}", total / 1e9, "GB") as progress:
            arrays = {ours: _read(plan, reader, progress) for ours, plan in plans.items()}
    return with_parameters(abstract, arrays)


class HfWeights:
    """A reader that returns the parameters of a Hugging Face folder, one at a time.

    The constructor raises UserError if the folder is missing or damaged, or if it does not hold a
    supported model.
    """

    def __init__(self, path: str) -> None:
        self._folder = resolve(path)
        self.config = ModelConfig.from_hf(self._folder)
        self._mesh = make_mesh(MeshConfig(), jax.local_devices(backend="cpu")[:1])
        self._shapes = parameters_by_path(with_shardings(abstract_llama(self.config), self._mesh))
        with byte_reader() as reader:
            self._tensors = checked_tensors(self._folder, self.config, reader)

    def parameter(self, path: str) -> jax.Array:
        """Return the float32 array of a parameter, such as ``layers/query``, on the host's CPU."""
        plan = _plan(BY_OURS[path], self._shapes[path].get_value(), self._tensors)
        _require_memory([plan.buffer_bytes], self._mesh, self._folder)
        total = sum(block.size_bytes for block in plan.blocks)
        with byte_reader() as reader, Progress(f"read {path}", total / 1e9, "GB") as progress:
            return _read(plan, reader, progress)


Bounds = tuple[tuple[int, int], ...]
"""The (start, stop) of a slice in each dimension."""


@dataclass(frozen=True)
class ReadBlock:
    """A rectangular block of a stored matrix, which is read in one call."""

    tensor: StoredTensor
    layer: int
    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def size_bytes(self) -> int:
        """The number of bytes to read."""
        (top, bottom), (left, right) = self.rows, self.columns
        return (bottom - top) * (right - left) * self.tensor.dtype.itemsize


@dataclass(frozen=True)
class ReadPlan:
    """The blocks of a parameter that a process reads, and the slices that each device holds."""

    name: TensorName
    like: jax.ShapeDtypeStruct
    owned: dict[jax.Device, Bounds]  # pyright: ignore[reportInvalidTypeForm]
    blocks: tuple[ReadBlock, ...]

    @property
    def buffer_bytes(self) -> int:
        """The size of the host's float32 buffers for this parameter."""
        shards = set(self.owned.values())
        return 4 * sum(math.prod(stop - start for start, stop in bounds) for bounds in shards)


def _require_memory(sizes: list[int], mesh: Mesh, folder: str) -> None:
    """Raise UserError if the host's memory is too small for parameters with ``sizes`` in bytes.

    On CPU, the host holds all parameters. For other devices, it holds one parameter at a time.
    """
    needed = sum(sizes) if mesh.devices.flat[0].platform == "cpu" else max(sizes)
    if needed > (memory := physical_memory()):
        raise UserError(
            f"{folder}: its parameters need {needed / 1e9:.3g} GB of host memory in float32, but "
            f"this machine has {memory / 1e9:.3g} GB; use a machine with more memory."
        )


def physical_memory() -> int:
    """Return the size of this machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _plan(
    name: TensorName, like: jax.ShapeDtypeStruct, tensors: dict[str, StoredTensor]
) -> ReadPlan:
    assert like.sharding is not None
    indices = like.sharding.addressable_devices_indices_map(like.shape)
    owned = {
        device: _bounds(index, like.shape) for device, index in indices.items() if index is not None
    }
    layers = sorted({i for bounds in owned.values() for i in _layers(name, bounds)})
    matrices = [_matrix_bounds(name, bounds) for bounds in owned.values()]
    # Rows or columns that several devices hold (replicas, or a shard of an axis) are read once.
    rows, columns = (_merged(side) for side in zip(*matrices, strict=True))
    blocks = []
    for layer in layers:
        tensor = tensors[name.tensor(layer)]
        for left, right in columns:
            height = max(1, BLOCK_BYTES // ((right - left) * tensor.dtype.itemsize))
            for top, bottom in rows:
                for start in range(top, bottom, height):
                    stop = min(start + height, bottom)
                    blocks.append(ReadBlock(tensor, layer, (start, stop), (left, right)))
    return ReadPlan(name, like, owned, tuple(blocks))


def _read(plan: ReadPlan, reader: ByteReader, progress: Progress) -> jax.Array:
    """Read the blocks of ``plan``, and return the parameter as a sharded float32 array."""
    buffers = {bounds: _aligned_empty(bounds) for bounds in plan.owned.values()}

    def run(block: ReadBlock) -> int:
        values = read_block(reader, block.tensor, slice(*block.rows), slice(*block.columns))
        for bounds, buffer in buffers.items():
            if block.layer in _layers(plan.name, bounds):
                _copy_overlap(plan.name, block, values, bounds, buffer)
        return block.size_bytes

    # Blocks are disjoint, so threads write to disjoint parts of the buffers and need no lock.
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for count in pool.map(run, plan.blocks):
            progress.update(count / 1e9)
    # On CPU, the arrays use the memory of the buffers. On other platforms, the buffers are released
    # after the transfer.
    shards = [jax.device_put(buffers[bounds], device) for device, bounds in plan.owned.items()]
    whole = jax.make_array_from_single_device_arrays(plan.like.shape, plan.like.sharding, shards)
    return jax.block_until_ready(whole)


def _copy_overlap(
    name: TensorName, block: ReadBlock, values: np.ndarray, bounds: Bounds, buffer: np.ndarray
) -> None:
    """Copy the part of ``block`` inside the slice ``bounds`` of our parameter into ``buffer``."""
    matrix = buffer[block.layer - bounds[0][0]] if name.stacked else buffer
    # A view with the shape of the stored matrix. A vector is stored as a matrix with one row.
    view = matrix.T if name.transposed else matrix.reshape(-1, matrix.shape[-1])
    rows, columns = _matrix_bounds(name, bounds)
    from_rows, to_rows = _overlap(block.rows, rows)
    from_columns, to_columns = _overlap(block.columns, columns)
    convert(values[from_rows, from_columns], view[to_rows, to_columns])


def convert(values: np.ndarray, out: np.ndarray) -> None:
    """Copy ``values`` into ``out``, converted to the dtype of ``out``.

    The copy proceeds in tiles, because one of the two arrays can be a transposed view.
    """
    for top in range(0, values.shape[0], TILE):
        for left in range(0, values.shape[1], TILE):
            tile = slice(top, top + TILE), slice(left, left + TILE)
            out[tile] = values[tile].astype(out.dtype)


def _layers(name: TensorName, bounds: Bounds) -> range:
    return range(*bounds[0]) if name.stacked else range(1)


def _matrix_bounds(name: TensorName, bounds: Bounds) -> Bounds:
    """Return the part of the stored matrix that contains the slice ``bounds`` of our parameter.

    The result is the (start, stop) of the rows and of the columns.
    """
    matrix = bounds[1:] if name.stacked else bounds
    if len(matrix) == 1:
        return ((0, 1), *matrix)
    return matrix[::-1] if name.transposed else matrix


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    return tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))


def _merged(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sort (start, stop) intervals, and join the intervals that touch or overlap."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(set(runs)):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return merged


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> tuple[slice, slice]:
    """Return the overlap of two (start, stop) intervals, as a slice of each interval.

    Both slices are empty if the intervals do not overlap.
    """
    start = max(a[0], b[0])
    stop = max(start, min(a[1], b[1]))
    return slice(start - a[0], stop - a[0]), slice(start - b[0], stop - b[0])


def _aligned_empty(bounds: Bounds) -> np.ndarray:
    """Return an uninitialized float32 array with the shape of ``bounds``.

    The array's memory is aligned to ALIGNMENT bytes.
    """
    shape = tuple(stop - start for start, stop in bounds)
    size_bytes = 4 * math.prod(shape)
    raw = np.empty(size_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size_bytes].view(np.float32).reshape(shape)
