"""Import and export preserve all bytes on any mesh, and damaged folders are rejected."""

import json
import logging
from pathlib import Path
import re
import shutil
import socket
import struct
import subprocess
import sys
from typing import Any
import warnings

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest
from safetensors.torch import load_file
import torch
import transformers

from llama_cpt.config.schema import MeshConfig
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights import hf_weights
from llama_cpt.weights.hf_export import ExportOptions, export_hf
from llama_cpt.weights.hf_names import parameters_by_path
from llama_cpt.weights.hf_weights import load_hf
from llama_cpt.weights.safetensors import byte_reader, stored_tensors
from llama_cpt.weights.source import HfFolder
from tests.weights.hf_models import LLAMA3_ROPE, save_llama, token_rows

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def stored(folder: str) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in Path(folder).glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def export(model, output, **options):
    parameters = parameters_by_path(model)
    export_hf(
        lambda path: parameters[path][...], model.config, str(output), ExportOptions(**options)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shard_in", "shard_out"), [("1GB", 10**9), ("100KB", 60_000)])
def test_round_trip_keeps_all_bytes(dtype, shard_in, shard_out, tmp_path):
    fields = {"tie_word_embeddings": dtype == "float16", "rope_parameters": LLAMA3_ROPE}
    source = save_llama(tmp_path / "in", DTYPES[dtype], shard_in, **fields)
    # Blocks are smaller than a matrix, and tiles are smaller than a block.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_weights, "BLOCK_BYTES", 4096)
        patch.setattr(hf_weights, "TILE", 8)
        export(load_hf(source), tmp_path / "out", dtype=dtype, shard_bytes=shard_out)
    before, after = stored(source), stored(str(tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype and torch.equal(
            after[name].view(torch.uint8), tensor.view(torch.uint8)
        ), name
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert ("model.safetensors" in files) == (shard_out == 10**9)
    assert not (tmp_path / "out.incomplete").exists()


def test_transformers_loads_an_export_without_warnings(tmp_path, caplog, capfd):
    source = save_llama(tmp_path / "in", rope_parameters=LLAMA3_ROPE)
    export(
        load_hf(source),
        tmp_path / "out",
        dtype="float32",
        shard_bytes=60_000,
        token_ids={"bos_token_id": 1},
    )
    transformers.utils.logging.enable_propagation()
    capfd.readouterr()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
        model, info = loaded
        tokens = torch.tensor(token_rows(128, 1, 8)).long()
        model.generate(tokens, max_new_tokens=2, pad_token_id=0, attention_mask=tokens >= 0)
    transformers.utils.logging.disable_propagation()
    printed = re.sub(r"Loading weights:[^\r\n]*", "", capfd.readouterr().err).strip()
    assert not caplog.records and not printed
    assert not any(info.values())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, theirs(tokens).logits)


def test_sharded_over_a_mesh(tmp_path):
    path = save_llama(tmp_path, torch.bfloat16, "60KB")
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    whole, parts = (parameters_by_path(load_hf(path, mesh=m)) for m in (None, mesh))
    for name in whole:
        np.testing.assert_array_equal(whole[name][...], parts[name][...])
    assert parts["layers/up"].sharding.spec == PartitionSpec(None, ("fsdp", "context"), "tensor")
    assert {s.data.shape for s in parts["layers/up"].addressable_shards} == {(3, 12, 40)}
    model = load_hf(path, mesh=mesh)
    tokens = jnp.asarray(token_rows(128, 4, 16))
    positions = jnp.broadcast_to(jnp.arange(16, dtype=jnp.int32), tokens.shape)
    inputs = tokens, positions, jnp.ones_like(tokens)
    with jax.set_mesh(mesh):
        logits = jax.jit(lambda model, inputs: model(*inputs))(model, inputs)
    np.testing.assert_allclose(logits, load_hf(path)(*inputs), atol=1e-4)


def test_mesh_of_one_device_without_copies(tmp_path):
    """XLA uses the buffers without a copy. A copy would double the memory."""
    model = load_hf(save_llama(tmp_path))
    buffer = hf_weights._aligned_empty(((0, 3), (0, 5)))
    assert jax.device_put(buffer).unsafe_buffer_pointer() == buffer.ctypes.data
    assert len(model.norm.sharding.device_set) == 1


PROCESS = """
import sys
import jax
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[1]))
import numpy as np
from llama_cpt.config.schema import MeshConfig
from llama_cpt.weights import safetensors
from llama_cpt.weights.hf_names import parameters_by_path
from llama_cpt.weights.hf_weights import load_hf
from llama_cpt.weights.safetensors import byte_reader, stored_tensors
from llama_cpt.weights.source import HfFolder
from llama_cpt.parallel.mesh import make_mesh
read, ranges = safetensors.ByteReader.read, []
def counted(self, file, start, out):
    ranges.append(out.size)
    read(self, file, start, out)
whole = parameters_by_path(load_hf(sys.argv[3]))
safetensors.ByteReader.read = counted
model = load_hf(sys.argv[3], mesh=make_mesh(MeshConfig(fsdp=4, tensor=2)))
for name, parameter in parameters_by_path(model).items():
    for shard in parameter.get_value().addressable_shards:
        assert np.array_equal(shard.data, np.asarray(whole[name].get_value())[shard.index]), name
print("READ", sum(ranges))
"""


def test_each_process_reads_its_own_slices(tmp_path):
    path = save_llama(tmp_path, torch.bfloat16, "60KB")
    environment = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-c", PROCESS]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen([*command, str(i), address, path], env=environment, stdout=subprocess.PIPE)
        for i in range(2)
    ]
    outputs = [process.communicate()[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    tensors = stored(path)
    norms = sum(tensor.nbytes for name, tensor in tensors.items() if "norm" in name)
    matrices = sum(tensor.nbytes for tensor in tensors.values()) - norms
    headers = sum(
        8 + struct.unpack("<Q", file.read_bytes()[:8])[0]
        for file in Path(path).glob("*.safetensors")
    )
    for output in outputs:
        assert int(output.split("READ")[1]) == matrices // 2 + norms + headers


def rewrite_header(file: Path, change) -> None:
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def rewrite_json(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def truncate(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def drop_from_index(folder: Path, name: str) -> None:
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    del weight_map[name]
    rewrite_json(index, weight_map=weight_map)


def only_pickle(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


FIRST = "model-00001-of-00002.safetensors"
QUERY = "model.layers.1.self_attn.q_proj.weight"
BREAK = {
    "truncated data": (lambda f: truncate(f / FIRST, 50_000), f"{FIRST}: truncated"),
    "truncated header": (lambda f: truncate(f / FIRST, 100), f"{FIRST}: truncated"),
    "empty file": (lambda f: truncate(f / FIRST, 0), f"{FIRST}: truncated"),
    "an HTML page": (lambda f: (f / FIRST).write_text("<html>" * 99), f"{FIRST}: truncated"),
    "missing shard": (lambda f: (f / FIRST).unlink(), f"{FIRST}: missing"),
    "index without a tensor": (lambda f: drop_from_index(f, QUERY), f"holds '{QUERY}'"),
    "index without a map": (
        lambda f: rewrite_json(f / "model.safetensors.index.json", weight_map={}),
        "no weight_map",
    ),
    "pickle": (only_pickle, "pytorch_model.bin: a pickle"),
    "nothing": (lambda f: [p.unlink() for p in f.glob("*.safetensors*")], "holds neither"),
    "other vocabulary": (lambda f: rewrite_json(f / "config.json", vocab_size=64), r"\[128, 48\]"),
    "fewer layers": (
        lambda f: rewrite_json(f / "config.json", num_hidden_layers=2),
        "unexpected tensor 'model.layers.2",
    ),
    "more layers": (
        lambda f: rewrite_json(f / "config.json", num_hidden_layers=4),
        "tensor 'model.layers.3.* is missing",
    ),
    "tied, with a head of its own": (
        lambda f: rewrite_json(f / "config.json", tie_word_embeddings=True),
        "'lm_head.weight' differs from the embedding",
    ),
}


@pytest.fixture(scope="session")
def good_folder(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("good"), shard="150KB")


@pytest.mark.parametrize("case", BREAK)
def test_broken_folders(case, good_folder, tmp_path, monkeypatch):
    folder = tmp_path / "broken"
    shutil.copytree(good_folder, folder)
    breaks, message = BREAK[case]
    breaks(folder)
    monkeypatch.setattr(hf_weights, "_read", None)  # Found before any weight is read.
    with pytest.raises(UserError, match=message) as error:
        load_hf(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "F8_E4M3"}, "has dtype F8_E4M3"),
        ({"dtype": 5}, "its header is invalid"),
        ({"shape": [1]}, "takes 4 bytes"),
        ({"shape": [-48, -48]}, "its header is invalid"),
        ({"shape": [True, 48]}, "its header is invalid"),
        ({"shape": ["x" * 100_000, 100_000]}, "its header is invalid"),
        ({"shape": [2**62, 2**62]}, "takes 8507059173"),
        ({"shape": [1] * 9}, "its header is invalid"),
        ({"shape": 48}, "its header is invalid"),
        ({"data_offsets": [0]}, "its header is invalid"),
        ({"data_offsets": ["0", "9216"]}, "its header is invalid"),
        ({"data_offsets": [-9216, 0]}, "its header is invalid"),
        ({"data_offsets": [0.0, 9216.0]}, "its header is invalid"),
        ({"data_offsets": [0, 9216]}, "begins at byte"),  # Two tensors share these bytes.
    ],
)
def test_broken_headers(change, message, tmp_path):
    path = Path(save_llama(tmp_path))
    rewrite_header(path / "model.safetensors", lambda header: header[QUERY].update(change))
    with pytest.raises(UserError, match=message):
        load_hf(str(path))


def tiny_file(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def entry(start: int, stop: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(stop - start) // 4], "data_offsets": [start, stop]}


TWO = json.dumps({"b": entry(8, 16), "a": entry(0, 8)}).encode()


def test_tensors_can_be_listed_in_any_order(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(tiny_file(TWO, bytes(16)))
    with byte_reader() as reader:
        assert list(stored_tensors(str(tmp_path), reader)) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiny_file(TWO, bytes(20)), "has 4 bytes after its last tensor"),
        (tiny_file(TWO, bytes(15)), "truncated: 'b' ends at byte"),
        (tiny_file(TWO.replace(b"[0, 8]", b"[4, 12]"), bytes(16)), "'a' begins at byte"),
        (tiny_file(TWO.replace(b'"b"', b'"a"'), bytes(16)), "the name 'a' occurs twice"),
        (tiny_file(b'{"a": ' * 100_000), "nested more than 100 deep"),
        (tiny_file(b'{"a": null}'), "its header is invalid: 'a' is None"),
        (tiny_file(b"[]"), "must be a JSON object"),
        (tiny_file(b""), "not JSON"),
        (struct.pack("<Q", 2**63) + bytes(99), "claims a length of 9223372036854775808"),
        (bytes(7), "truncated or not safetensors"),
    ],
)
def test_files_that_the_format_forbids_are_rejected(content, message, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with byte_reader() as reader, pytest.raises(UserError, match=message) as error:
        stored_tensors(str(tmp_path), reader)
    assert str(error.value).startswith(f"{tmp_path}/model.safetensors: ")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "name",
    [None, 3, ["x"], "", "..", ".", "/etc/passwd", "../x.safetensors", "a/b.safetensors", "x\0"]
    + ["weights.bin", ".safetensors", "x\n.safetensors", "\ud800.safetensors"],
)
def test_index_names_only_safetensors_files_in_the_folder(name, good_folder, tmp_path):
    shutil.copytree(good_folder, tmp_path / "copy")
    index = tmp_path / "copy/model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    rewrite_json(index, weight_map={**weight_map, QUERY: name})
    with pytest.raises(UserError, match=f"weight_map\\['{QUERY}'\\] is .* not the name of a"):
        load_hf(str(tmp_path / "copy"))


def test_two_sets_of_weights_in_one_folder_are_rejected(good_folder, tmp_path):
    """transformers reads the single file and ignores the shards."""
    folder = tmp_path / "both"
    shutil.copytree(good_folder, folder)
    save_llama(tmp_path / "other", seed=1)
    shutil.copy(tmp_path / "other/model.safetensors", folder)
    for read in (load_hf, lambda path: HfFolder(path).fingerprint()):
        with pytest.raises(UserError, match="model.safetensors and .*model.safetensors.index.json"):
            read(str(folder))
    (folder / "model.safetensors.index.json").unlink()
    embedding = load_hf(str(tmp_path / "other")).embedding[...]
    np.testing.assert_array_equal(load_hf(str(folder)).embedding[...], embedding)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="adapter_config.json: the folder holds LoRA adapters"):
        load_hf(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 10**9, "head_dim": 12}, "config.json requires"),
        ({"vocab_size": 10**9}, "config.json requires"),
        ({"num_hidden_layers": 10**9}, "requires 1,000,000,000 layers"),
    ],
)
def test_sizes_beyond_memory_are_rejected_before_allocation(
    changes, message, good_folder, tmp_path
):
    shutil.copytree(good_folder, tmp_path / "copy")
    rewrite_json(tmp_path / "copy/config.json", **changes)
    with pytest.raises(UserError, match=message):
        load_hf(str(tmp_path / "copy"))


def test_model_larger_than_the_memory_is_rejected(good_folder, monkeypatch):
    monkeypatch.setattr(hf_weights, "physical_memory", lambda: 100_000)
    monkeypatch.setattr(hf_weights, "_read", None)  # Found before any weight is read.
    with pytest.raises(
        UserError, match="need .* GB of host memory in float32, but this machine has 0.0001 GB"
    ):
        load_hf(good_folder)


def test_padded_embeddings_are_kept_by_an_export(tmp_path):
    """Resized models have more embedding rows than their tokenizer has tokens."""
    source = save_llama(tmp_path / "in", torch.bfloat16, vocab_size=192)
    export(load_hf(source), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 192
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        before, after = (stored(str(tmp_path / folder))[name] for folder in ("in", "out"))
        assert before.shape == (192, 48) and torch.equal(before, after)


def test_load_rejects_another_config(good_folder):
    config = load_hf(good_folder).config
    load_hf(good_folder, config)
    with pytest.raises(UserError, match=r"model\.rope_theta=10001"):
        load_hf(good_folder, config.__class__(**{**vars(config), "rope_theta": 10001.0}))


def test_export_does_not_overwrite(good_folder, tmp_path):
    model = load_hf(good_folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="already exists"):
        export(model, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_export_out_of_range_leaves_nothing(good_folder, tmp_path):
    model = load_hf(good_folder)
    model.norm[...] = model.norm[...].at[3].set(70000.0)
    with pytest.raises(UserError, match=r"model\.norm\.weight: a value overflows float16"):
        export(model, tmp_path / "out", dtype="float16")
    assert not list(tmp_path.iterdir())
