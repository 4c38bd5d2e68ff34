"""Import and export through ``gs://``."""

import fsspec
import numpy as np
import pytest
import torch

from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.hf_export import ExportOptions, export_hf
from llama_cpt.weights.hf_names import parameters_by_path
from llama_cpt.weights.hf_weights import load_hf
from llama_cpt.weights.hub import resolve
from tests.storage_server import bucket
from tests.weights.hf_models import save_llama

__all__ = ["bucket"]


def test_there_and_back(bucket, tmp_path):
    source = save_llama(tmp_path / "in", torch.bfloat16, "60KB")
    fsspec.filesystem("gs").put(source, "gs://bucket/in", recursive=True)
    local, remote = (parameters_by_path(load_hf(p)) for p in (source, "gs://bucket/in"))
    for name in local:
        np.testing.assert_array_equal(local[name][...], remote[name][...])

    model = load_hf(source)
    parameters = parameters_by_path(model)
    for output in ("gs://bucket/deep/out", str(tmp_path / "out")):
        options = ExportOptions(shard_bytes=60_000)
        export_hf(lambda path: parameters[path][...], model.config, output, options)
    for file in (tmp_path / "out").iterdir():
        assert bucket.objects[f"deep/out/{file.name}"] == file.read_bytes()


def test_nothing_is_left_of_a_failed_export(bucket, tmp_path):
    model = load_hf(save_llama(tmp_path))
    parameters = parameters_by_path(model)

    def fails(path):
        if path == "layers/key":
            raise OSError(28, "No space left on device")
        return parameters[path][...]

    for output in ("gs://bucket/out", str(tmp_path / "out")):
        with pytest.raises(
            UserError, match=r"No space left on device\); the incomplete folder was removed"
        ):
            export_hf(fails, model.config, output, ExportOptions(shard_bytes=10_000))
    assert not bucket.objects and not list(tmp_path.glob("out*"))


def test_truncated(bucket, tmp_path):
    source = save_llama(tmp_path / "in")
    fsspec.filesystem("gs").put(source, "gs://bucket/in", recursive=True)
    bucket.objects["in/model.safetensors"] = bucket.objects["in/model.safetensors"][:-1]
    with pytest.raises(UserError, match="truncated"):
        load_hf("gs://bucket/in")


def test_absent(bucket):
    with pytest.raises(UserError, match="gs://bucket/none: no such folder"):
        resolve("gs://bucket/none")
    bucket.status = 403
    with pytest.raises(UserError, match=r"cannot be read \(Forbidden"):
        resolve("gs://bucket/in")
