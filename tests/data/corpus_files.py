"""Corpora of documents for tests: source files, and the content of prepared folders."""

import bz2
from collections.abc import Iterable
import gzip
import json
import lzma
from pathlib import Path
import random

import numpy as np
import pyarrow as pa

from llama_cpt.config.schema import DataConfig
from llama_cpt.data.prepare.corpora import PreparedCorpora
from llama_cpt.data.prepare.layout import ShardLayout
from llama_cpt.data.rows import DOCUMENT_START, TokenRows
from llama_cpt.data.tokenizer.base import Tokenizer

LENGTH = 31
SMALL_SHARDS = ShardLayout(span_bytes=300, shard_bytes=3000)

# Suffix of a file -> function that compresses the content of the file.
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


def texts(count: int, seed: int = 0) -> list[str]:
    """Return ``count`` documents of random length with ASCII and Chinese characters."""
    rng = random.Random(seed)
    return [f"{i}: the " + rng.choice("ab中 ") * rng.randrange(200) for i in range(count)]


def write_lines(path: Path, documents: Iterable[str]) -> None:
    """Write ``documents`` to ``path`` as JSON Lines, compressed if its suffix is ``.gz``."""
    content = "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def prepared_files(config: DataConfig) -> dict[str, bytes]:
    """Return the content of each file in ``config.prepared`` except locks, by relative path."""
    folder = Path(config.prepared)
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def tokens_of(tokenizer: Tokenizer, documents: Iterable[str]) -> np.ndarray:
    """Return the concatenated tokens of ``documents``, each with a marked BOS and with EOS."""
    assert tokenizer.bos_id is not None
    begin = tokenizer.bos_id | int(DOCUMENT_START)
    ids = [[begin, *tokenizer.encode(text), tokenizer.eos_id] for text in documents]
    return np.array([one for document in ids for one in document], np.uint32)


def rows_by_shard(prepared: PreparedCorpora, name: str) -> list[np.ndarray]:
    """Return the rows of each shard of the corpus ``name``."""
    rows = TokenRows(prepared.folder(name))
    ends = np.cumsum([count for _, count in prepared.rows[name].shards])
    return np.split(rows.read(np.arange(len(rows))), ends[:-1])
