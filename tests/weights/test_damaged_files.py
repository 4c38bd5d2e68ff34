"""Damaged files of a model, a run or a law cause a UserError or are read, in bounded memory."""

from collections.abc import Callable
import json
from pathlib import Path
import random
import shutil
import tracemalloc
from typing import Any

import numpy as np
import pytest

from llama_cpt.config.model import ModelConfig
from llama_cpt.mixture_law.law_file import load_law
from llama_cpt.mixture_law.table import read_table
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.provenance import find_origin
from llama_cpt.weights.safetensors import byte_reader, file_header, stored_tensors
from llama_cpt.weights.source import RunFolder
from tests.weights.hf_models import save_llama

ROOT = Path(__file__).resolve().parents[2]
VALUES: list[Any] = [None, True, -1, 0, 10**9, 2**64, 1e308, "", "x", "..", [], [1], {}, {"a": 1}]
MAX_BYTES = 50_000_000
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "vocab_size": 16,
}
SHAPES = {
    "model.embed_tokens.weight": (16, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.v_proj.weight": (4, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.layers.0.mlp.gate_proj.weight": (8, 8),
    "model.layers.0.mlp.up_proj.weight": (8, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 8),
    "model.norm.weight": (8,),
}
SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"


def flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 3))):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def repeat(content: bytes, draw: random.Random) -> bytes:
    start, stop = sorted(draw.randrange(len(content)) for _ in range(2))
    return content[:stop] + content[start:]


def mutate(content: bytes, draw: random.Random) -> bytes:
    """Replace or remove one value of a JSON document, which can follow 8 bytes of length."""
    prefix = 8 if content[:1] != b"{" else 0
    value, stop = json.JSONDecoder().raw_decode(content[prefix:].decode("latin-1"))
    node, nested = value, True
    while nested and node:
        key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        nested = isinstance(node[key], dict | list) and draw.random() < 0.8
        if nested and node[key]:
            node = node[key]
            continue
        if draw.random() < 0.2:
            del node[key]
        else:
            node[key] = draw.choice(VALUES)
        break
    text = json.dumps(value).encode()
    length = len(text).to_bytes(8, "little") if prefix else b""
    return length + text + content[prefix + stop :]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one shard and an index, the config of a run, and the files of a law."""
    folder = tmp_path_factory.mktemp("good")
    float32 = np.dtype(np.float32)
    header = file_header([(name, float32, shape) for name, shape in SHAPES.items()])
    size = 4 * sum(int(np.prod(shape)) for shape in SHAPES.values())
    (folder / SHARD).write_bytes(header + bytes(size))
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(SHAPES, SHARD)}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "origin.json").write_text('{"base": "meta-llama/Llama-3.2-1B"}')
    (folder / "run").mkdir()
    data = {"tokenizer": str(folder), "prepared": "rows"}
    (folder / "run/config.json").write_text(json.dumps({"init_from": str(folder), "data": data}))
    shutil.copy(ROOT / "docs/notes/study/law.json", folder)
    lines = (ROOT / "docs/notes/study/small.csv").read_bytes().splitlines(keepends=True)
    (folder / "results.csv").write_bytes(b"".join(lines[:20]))
    return folder


def read_headers(folder: Path) -> None:
    with byte_reader() as reader:
        assert stored_tensors(str(folder), reader)


def read_run(folder: Path) -> None:
    find_origin(str(folder / "run"))
    source = RunFolder(str(folder / "run"))
    source.__dict__["metadata"] = {}  # No checkpoint: only config.json names the tokenizer.
    assert source.tokenizer


READERS: dict[str, tuple[Callable[[Path], Any], int]] = {
    "config.json": (lambda folder: ModelConfig.from_hf(str(folder)), 300),
    INDEX: (read_headers, 200),
    SHARD: (read_headers, 300),
    "origin.json": (lambda folder: find_origin(str(folder)), 200),
    "run/config.json": (read_run, 200),
    "law.json": (lambda folder: load_law(str(folder / "law.json")), 15),
    "results.csv": (lambda folder: read_table(str(folder / "results.csv")), 200),
}


@pytest.mark.parametrize("name", READERS)
def test_damage_is_a_user_error_or_harmless(name: str, folder: Path, tmp_path: Path, monkeypatch):
    # A damaged run config can name a model on the hub.
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / name
    read, count = READERS[name]
    read(tmp_path / "copy")
    draw, content, rejected = random.Random(name), file.read_bytes(), 0
    changes = [flip, cut, repeat, *([] if name.endswith(".csv") else [mutate, mutate])]
    tracemalloc.start()
    try:
        for _ in range(count):
            damaged = draw.choice(changes)(content, draw)
            file.write_bytes(damaged)
            try:
                read(tmp_path / "copy")
            except UserError as error:
                rejected += 1
                assert "\n" not in str(error) and len(str(error)) < 1000
            except Exception as error:
                pytest.fail(f"{error!r} for {damaged[:2000]!r}")
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()
    assert rejected > count // 10


def no_network(*arguments: Any, **options: Any) -> str:
    raise OSError("no network in this test")


def test_index_of_the_single_file_is_one_set_of_weights(tmp_path):
    folder = tmp_path / "model"
    save_llama(folder)
    with byte_reader() as reader:
        names = set(stored_tensors(str(folder), reader))
        index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert set(stored_tensors(str(folder), reader)) == names
