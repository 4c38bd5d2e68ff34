"""Safetensors by byte ranges: every header checked before any data is read.

A file is 8 bytes of header length, a JSON header, then the tensors' bytes
(https://huggingface.co/docs/safetensors). Ranges are read with ``pread``: mapped pages would count
as resident memory. Files lie on local disk or behind a URL such as ``gs://``.
"""

from collections.abc import Iterator
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
LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes lie."""

    name: str
    file: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte in ``file``."""

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns); a vector is one row."""
        return (1, *self.shape) if len(self.shape) == 1 else (self.shape[0], self.shape[1])


class ByteReader:
    """Reads byte ranges of local files and URLs; used by many threads at once."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    def read(self, file: str, start: int, out: np.ndarray) -> None:
        """Fill ``out`` (contiguous uint8) with the bytes from ``start``."""
        if "://" in file:
            filesystem, path = remote_storage(file)
            got = filesystem.cat_file(path, start=start, end=start + out.size)
            out[: len(got)] = np.frombuffer(got, np.uint8)
            done = len(got)
        else:
            done = self._read_local(file, start, out)
        if done != out.size:
            raise UserError(f"{file}: ended at byte {start + done} while it was read.")

    def _read_local(self, file: str, start: int, out: np.ndarray) -> int:
        descriptor = self._descriptors.get(file)
        if descriptor is None:
            opened = os.open(file, os.O_RDONLY)
            descriptor = self._descriptors.setdefault(file, opened)
            if descriptor != opened:
                os.close(opened)
        view, done = memoryview(out), 0
        while done < out.size:
            count = os.preadv(descriptor, [view[done:]], start + done)
            if count == 0:
                break
            done += count
        return done

    def close(self) -> None:
        """Close every file."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


@contextlib.contextmanager
def byte_reader() -> Iterator[ByteReader]:
    """A ByteReader whose files are closed at the end."""
    reader = ByteReader()
    try:
        yield reader
    finally:
        reader.close()


def read_block(reader: ByteReader, tensor: StoredTensor, rows: slice, columns: slice) -> np.ndarray:
    """``tensor[rows, columns]`` in its own dtype; of a local file, no byte outside them is read."""
    width = tensor.matrix_shape[1]
    if "://" in tensor.file and (columns.start, columns.stop) != (0, width):
        # A request for each row would take far longer than the bytes between them.
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
    """Every tensor of a folder's safetensors by name, each file's header checked.

    Raises UserError for pickles, a missing shard, a truncated file, an index that does not agree.
    """
    tensors: dict[str, StoredTensor] = {}
    index = _read_index(folder)
    for file in sorted(set(index.values())) if index else [SINGLE_FILE]:
        for tensor in _read_header(f"{folder}/{file}", reader):
            if index and index.get(tensor.name) != file:
                raise UserError(
                    f"{folder}/{file}: holds {tensor.name!r}, which {INDEX_FILE} places in "
                    f"{index.get(tensor.name)}; download the folder again."
                )
            tensors[tensor.name] = tensor
    absent = sorted(set(index) - set(tensors))
    if absent:
        raise UserError(f"{folder}/{index[absent[0]]}: lacks {absent[0]!r}, which the index names.")
    return tensors


def _read_index(folder: str) -> dict[str, str]:
    """Tensor name -> file; empty where one file holds everything."""
    path = epath.Path(folder)
    if not (path / INDEX_FILE).exists():
        if (path / SINGLE_FILE).exists():
            return {}
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
        if pickles:
            raise UserError(
                f"{folder}/{pickles[0]}: a pickle runs whatever code it holds when it is opened; "
                "only safetensors are read. Ask for the model's safetensors, or convert it where "
                "you trust it: transformers' save_pretrained(folder)."
            )
        raise UserError(f"{folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}.")
    index = read_json(f"{folder}/{INDEX_FILE}").get("weight_map")
    if not isinstance(index, dict) or not index:
        raise UserError(f"{folder}/{INDEX_FILE}: has no weight_map.")
    for file in sorted(set(index.values())):
        if Path(file).name != file:
            raise UserError(f"{folder}/{INDEX_FILE}: names a file outside the folder, {file!r}.")
        if not (path / file).exists():
            raise UserError(f"{folder}/{file}: missing, but {INDEX_FILE} names it.")
    return index


def read_json(path: str) -> dict[str, Any]:
    """A JSON object from a local file or URL."""
    try:
        values = json.loads(epath.Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}).") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no JSON object.")
    return values


def _read_header(file: str, reader: ByteReader) -> list[StoredTensor]:
    size = epath.Path(file).stat().length
    broken = f"{file}: truncated or not safetensors ({size} bytes"
    if size < 8:
        raise UserError(f"{broken}); download it again.")
    length_bytes = np.empty(8, np.uint8)
    reader.read(file, 0, length_bytes)
    length = struct.unpack("<Q", length_bytes.tobytes())[0]
    if length > min(size - 8, LONGEST_HEADER):
        raise UserError(f"{broken}, its header says that it is {length} long); download it again.")
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
        raise UserError(f"{broken}, its header is broken: {error!r}).") from None
    return [_stored_tensor(file, size, 8 + length, entry) for entry in entries]


def _stored_tensor(file: str, size: int, data_start: int, entry: tuple) -> StoredTensor:
    name, dtype, shape, start, stop = entry
    if dtype not in DTYPES:
        raise UserError(
            f"{file}: {name!r} is {dtype}; {', '.join(DTYPES)} can be read. A quantised model "
            "must be turned back first."
        )
    tensor = StoredTensor(name, file, DTYPES[dtype], shape, data_start + start)
    if stop - start != tensor.size_bytes or start < 0:
        raise UserError(
            f"{file}: {name!r} of shape {list(shape)} takes {tensor.size_bytes} bytes, its header "
            f"gives it {stop - start}; download it again."
        )
    if data_start + stop > size:
        raise UserError(
            f"{file}: truncated: {name!r} ends at byte {data_start + stop}, the file at {size}; "
            "download it again."
        )
    return tensor


def file_header(tensors: list[tuple[str, np.dtype, tuple[int, ...]]]) -> bytes:
    """The header of a file that holds these tensors in this order, without gaps."""
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
