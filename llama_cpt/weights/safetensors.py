"""Validation of safetensors headers, and reading of tensors by byte ranges.

A file consists of the header's length in 8 bytes, a JSON header, and the tensors' bytes
(https://huggingface.co/docs/safetensors). Ranges of local files are read with ``pread``, because
the pages of a memory-mapped file would count as resident memory. In this module, the name of a file
is a local path or a URL, such as a ``gs://`` URL.
"""

from collections.abc import Generator
import contextlib
from dataclasses import dataclass
import json
import math
import os
import re
import struct
from typing import Any

from etils import epath
import ml_dtypes
import numpy as np

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import MAX_BYTES, parse_json_object, read_json_object
from llama_cpt.runtime.literal_paths import is_regular_file, remote_storage

DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
"""The file with which peft describes the adapters in a folder."""
MAX_HEADER_BYTES = MAX_BYTES
"""The maximum length of a header. Without this limit, a damaged file could cause a huge allocation.
The header of a model with 100 layers takes about 0.1 MB."""
MAX_DIMENSIONS = 8
"""The maximum number of dimensions of a tensor."""
_SHARD_NAME = re.compile(r"[\w-][\w. +=@,-]{0,200}\.safetensors")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its dtype, its shape and the location of its bytes."""

    name: str
    file: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    """The offset of the first byte in ``file``."""

    @property
    def size_bytes(self) -> int:
        """The number of bytes that the tensor takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The shape as (rows, columns). A vector has one row."""
        return (1, *self.shape) if len(self.shape) == 1 else (self.shape[0], self.shape[1])


class ByteReader:
    """A thread-safe reader of byte ranges of local files and URLs."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    def read(self, file: str, start: int, out: np.ndarray) -> None:
        """Fill ``out``, a contiguous uint8 array, with the bytes of ``file`` from offset ``start``.

        Raises UserError if the file ends before ``out`` is full.
        """
        if "://" in file:
            filesystem, path = remote_storage(file)
            got = filesystem.cat_file(path, start=start, end=start + out.size)
            assert not isinstance(got, str)
            out[: len(got)] = np.frombuffer(got, np.uint8)
            done = len(got)
        else:
            done = self._read_local(file, start, out)
        if done != out.size:
            raise UserError(
                f"{file}: the file ended at byte {start + done} while it was read; download it "
                "again."
            )

    def _read_local(self, file: str, start: int, out: np.ndarray) -> int:
        descriptor = self._descriptors.get(file)
        if descriptor is None:
            opened = os.open(file, os.O_RDONLY)
            descriptor = self._descriptors.setdefault(file, opened)
            if descriptor != opened:
                os.close(opened)
        view, done = out.data, 0
        while done < out.size:
            count = os.preadv(descriptor, [view[done:]], start + done)
            if count == 0:
                break
            done += count
        return done

    def close(self) -> None:
        """Close all open files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


@contextlib.contextmanager
def byte_reader() -> Generator[ByteReader]:
    """Context manager that yields a ByteReader, and closes the reader's files on exit."""
    reader = ByteReader()
    try:
        yield reader
    finally:
        reader.close()


def read_block(reader: ByteReader, tensor: StoredTensor, rows: slice, columns: slice) -> np.ndarray:
    """Return ``tensor[rows, columns]`` in the tensor's dtype.

    From a local file, only the bytes of this block are read. From a URL, whole rows are read.
    """
    width = tensor.matrix_shape[1]
    if "://" in tensor.file and (columns.start, columns.stop) != (0, width):
        # One request per row would take much longer than one request for whole rows.
        return read_block(reader, tensor, rows, slice(0, width))[:, columns]
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    out = np.empty(shape, tensor.dtype)
    if shape[1] == width:
        start = tensor.start + rows.start * width * tensor.dtype.itemsize
        reader.read(tensor.file, start, out.reshape(-1).view(np.uint8))
        return out
    for i in range(shape[0]):
        element = (rows.start + i) * width + columns.start
        start = tensor.start + element * tensor.dtype.itemsize
        reader.read(tensor.file, start, out[i].view(np.uint8))
    return out


def stored_tensors(folder: str, reader: ByteReader) -> dict[str, StoredTensor]:
    """Return all tensors of a folder's safetensors files, keyed by name.

    Only headers are read. Raises UserError if the folder holds pickles instead of safetensors, if
    it holds two sets of weights, if a file is missing or damaged, or if the index and the headers
    disagree.
    """
    tensors: dict[str, StoredTensor] = {}
    index = _read_index(folder)
    for file in sorted(set(index.values())) if index else [SINGLE_FILE]:
        for tensor in _read_header(f"{folder}/{file}", reader):
            if index and index.get(tensor.name) != file:
                raise UserError(
                    f"{folder}/{file}: holds {tensor.name!r}, which {INDEX_FILE} assigns to "
                    f"{index.get(tensor.name)}; download the folder again."
                )
            tensors[tensor.name] = tensor
    absent = sorted(set(index) - set(tensors))
    if absent:
        raise UserError(
            f"{folder}/{index[absent[0]]}: has no {absent[0]!r}, which {INDEX_FILE} lists; "
            "download the folder again."
        )
    return tensors


def require_one_source(folder: str) -> None:
    """Raise UserError if ``folder`` holds two sets of weights, or adapters in addition to a model.

    From such a folder, transformers reads SINGLE_FILE instead of the files of the index. If there
    is an ``adapter_config.json``, transformers loads the adapters and the base model that this file
    names, instead of the weights in the folder. A pickle next to safetensors files is ignored, as
    in transformers.
    """
    path = epath.Path(folder)
    if (path / ADAPTER_CONFIG).exists():
        raise UserError(
            f"{folder}/{ADAPTER_CONFIG}: the folder holds LoRA adapters, which are not read. Merge "
            "them into their base model with peft's merge_and_unload and save_pretrained, or move "
            "the file away to use the weights next to it without the adapters."
        )
    if (
        (path / SINGLE_FILE).exists()
        and (path / INDEX_FILE).exists()
        # An index can list the single file itself.
        and any(file != SINGLE_FILE for file in _weight_map(folder).values())
    ):
        raise UserError(
            f"{folder}: holds two sets of weights, {SINGLE_FILE} and the files that {INDEX_FILE} "
            "lists; keep the set that belongs to config.json, and move the other file away."
        )


def _read_index(folder: str) -> dict[str, str]:
    """Return a map from tensor name to file name; empty if all tensors are in SINGLE_FILE."""
    path = epath.Path(folder)
    require_one_source(folder)
    if not (path / INDEX_FILE).exists():
        if (path / SINGLE_FILE).exists():
            return {}
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
        if pickles:
            raise UserError(
                f"{folder}/{pickles[0]}: a pickle can run code when it is opened, so only "
                "safetensors are read. Get the model's safetensors, or convert a model that you "
                "trust with transformers' save_pretrained(folder)."
            )
        raise UserError(
            f"{folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}; name the folder of a model."
        )
    index = _weight_map(folder)
    for tensor, file in index.items():
        # Only these names are downloaded, and only these files are part of a model's fingerprint.
        if not isinstance(file, str) or not _SHARD_NAME.fullmatch(file):
            raise UserError(
                f"{folder}/{INDEX_FILE}: weight_map[{tensor[:80]!r}] is {repr(file)[:80]}, which "
                "is not the name of a safetensors file in the folder; download the index again."
            )
    for file in sorted(set(index.values())):
        if not (path / file).exists():
            raise UserError(
                f"{folder}/{file}: missing, but {INDEX_FILE} lists it; download it again."
            )
    return index


def _weight_map(folder: str) -> dict[str, Any]:
    """Return the ``weight_map`` of the index, whose values are not validated."""
    index = read_json_object(f"{folder}/{INDEX_FILE}", "download it again").get("weight_map")
    if not isinstance(index, dict) or not index:
        raise UserError(f"{folder}/{INDEX_FILE}: has no weight_map; download it again.")
    return index


def _read_header(file: str, reader: ByteReader) -> list[StoredTensor]:
    """Return the tensors of one file, in the order of their bytes.

    Raises UserError unless the tensors cover the bytes after the header exactly once, as the
    format requires.
    """
    if not is_regular_file(file):
        raise UserError(f"{file}: not a regular file; download it again.")
    size = epath.Path(file).stat().length
    broken = f"{file}: truncated or not safetensors ({size} bytes"
    if size < 8:
        raise UserError(f"{broken}); download it again.")
    length_bytes = np.empty(8, np.uint8)
    reader.read(file, 0, length_bytes)
    length = struct.unpack("<Q", length_bytes.tobytes())[0]
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise UserError(f"{broken}, its header claims a length of {length}); download it again.")
    header_bytes = np.empty(length, np.uint8)
    reader.read(file, 8, header_bytes)
    header = parse_json_object(
        header_bytes.tobytes(),
        f"{broken}, its header is invalid)",
        "download it again",
        unique_names=True,
    )
    header.pop("__metadata__", None)
    data_start = 8 + length
    tensors = [_stored_tensor(file, size, data_start, name, header[name]) for name in header]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.size_bytes))
    end = data_start
    for tensor in tensors:
        if tensor.start != end:
            raise UserError(
                f"{file}: {tensor.name!r} begins at byte {tensor.start}, but the tensor before it "
                f"ends at byte {end}; download it again."
            )
        end += tensor.size_bytes
    if end != size:
        raise UserError(f"{file}: has {size - end} bytes after its last tensor; download it again.")
    return tensors


def _stored_tensor(file: str, size: int, data_start: int, name: str, entry: Any) -> StoredTensor:
    """Return the tensor that ``entry``, a value of the header, describes."""
    dtype, shape, (start, stop) = _header_entry(file, name, entry)
    if dtype not in DTYPES:
        raise UserError(
            f"{file}: {name!r} has dtype {dtype}; only {', '.join(DTYPES)} are supported. "
            "Dequantize the model first."
        )
    tensor = StoredTensor(name, file, DTYPES[dtype], shape, data_start + start)
    if stop - start != tensor.size_bytes:
        raise UserError(
            f"{file}: {name!r} of shape {list(shape)} takes {tensor.size_bytes} bytes, but its "
            f"header assigns {stop - start}; download it again."
        )
    if data_start + stop > size:
        raise UserError(
            f"{file}: truncated: {name!r} ends at byte {data_start + stop}, but the file ends at "
            f"byte {size}; download it again."
        )
    return tensor


def _header_entry(file: str, name: str, entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """Return the dtype, shape and offsets in one entry of a header, after checking their types."""
    values = entry if isinstance(entry, dict) else {}
    dtype = values.get("dtype")
    shape = _sizes(values.get("shape"))
    offsets = _sizes(values.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise UserError(
            f"{file}: its header is invalid: {name[:80]!r} is {repr(entry)[:80]}; download it "
            "again."
        )
    return dtype, shape, (offsets[0], offsets[1])


def _sizes(value: Any) -> tuple[int, ...] | None:
    """Return a list of sizes or offsets as a tuple, or None if the list is invalid."""
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        return None
    # In Python, bool is a subclass of int. JSON integers have no upper limit.
    valid = all(type(entry) is int and 0 <= entry < 2**63 for entry in value)
    return tuple(value) if valid else None


def file_header(tensors: list[tuple[str, np.dtype, tuple[int, ...]]]) -> bytes:
    """Return the header of a file that holds ``tensors`` in this order, without gaps.

    Each tensor is given by its name, dtype and shape.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, dtype, shape in tensors:
        stop = start + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
