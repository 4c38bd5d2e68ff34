"""A small tokenizer in Llama 3's format, with one token per byte and the special tokens."""

import base64
from pathlib import Path


def write_byte_tokenizer(folder: Path, *merged: bytes) -> Path:
    """Write ``tokenizer.model`` with one additional token per item of ``merged``; return its
    path."""
    tokens = [*(bytes([byte]) for byte in range(256)), *merged]
    lines = (base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens))
    path = folder / "tokenizer.model"
    path.write_bytes(b"".join(lines))
    return path
