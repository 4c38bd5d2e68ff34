"""Llama-3's kind of tokenizer, small: a token for each byte, and its special ones."""

import base64
from pathlib import Path


def write_byte_tokenizer(folder: Path, *merged: bytes) -> Path:
    """``tokenizer.model`` in ``folder``, with a token for each of ``merged`` too."""
    tokens = [*(bytes([byte]) for byte in range(256)), *merged]
    lines = (base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens))
    path = folder / "tokenizer.model"
    path.write_bytes(b"".join(lines))
    return path
