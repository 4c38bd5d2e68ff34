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
from pathlib import Path
import struct
from typing import Any

from etils import epath
import ml_dtypes
import numpy as np

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.literal_paths import remote_storage

DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000
"""The maximum length of a header, as in the reference implementation. Without this limit, a damaged
file could cause a huge allocation."""


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

    Only headers are read. Raises UserError if the folder holds pickles instead of safetensors, if a
    file is missing or truncated, or if the index and the headers disagree.
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


def _read_index(folder: str) -> dict[str, str]:
    """Return a map from tensor name to file name; empty if all tensors are in SINGLE_FILE."""
    path = epath.Path(folder)
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
    index = read_json(f"{folder}/{INDEX_FILE}").get("weight_map")
    if not isinstance(index, dict) or not index:
        raise UserError(f"{folder}/{INDEX_FILE}: has no weight_map; download it again.")
    for file in sorted(set(index.values())):
        if Path(file).name != file:
            raise UserError(
                f"{folder}/{INDEX_FILE}: names a file outside the folder, {file!r}; download the "
                "index again."
            )
        if not (path / file).exists():
            raise UserError(
                f"{folder}/{file}: missing, but {INDEX_FILE} lists it; download it again."
            )
    return index


def read_json(path: str) -> dict[str, Any]:
    """Return the JSON object in ``path``, a local file or a URL.

    Raises UserError if the file is missing or does not hold a JSON object.
    """
    try:
        values = json.loads(epath.Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}).") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a JSON object.")
    return values


def _read_header(file: str, reader: ByteReader) -> list[StoredTensor]:
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
    try:
        header = json.loads(header_bytes.tobytes())
        header.pop("__metadata__", None)
        entries = [
            (name, str(value["dtype"]), tuple(value["shape"]), start, stop)
            for name, value in header.items()
            for start, stop in [value["data_offsets"]]
        ]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{broken}, its header is invalid: {error!r}); download it again."
        ) from None
    return [_stored_tensor(file, size, 8 + length, entry) for entry in entries]


def _stored_tensor(
    file: str, size: int, data_start: int, entry: tuple[str, str, tuple[int, ...], int, int]
) -> StoredTensor:
    name, dtype, shape, start, stop = entry
    if dtype not in DTYPES:
        raise UserError(
            f"{file}: {name!r} has dtype {dtype}; only {', '.join(DTYPES)} are supported. "
            "Dequantize the model first."
        )
    tensor = StoredTensor(name, file, DTYPES[dtype], shape, data_start + start)
    if stop - start != tensor.size_bytes or start < 0:
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
