"""The same through ``gs://``, on a bucket in memory."""

import numpy as np
import pytest
import torch

from llama_cpt.errors import UserError
from llama_cpt.model.hf_export import ExportOptions, export_hf
from llama_cpt.model.hf_names import parameters_by_path
from llama_cpt.model.hf_weights import load_hf
from llama_cpt.model.hub import resolve
from tests.bucket import Bucket, bucket
from tests.model.hf_models import save_llama

__all__ = ["bucket"]


def test_there_and_back(bucket, tmp_path):
    source = save_llama(tmp_path / "in", torch.bfloat16, "60KB")
    bucket.put(source, "gs://bucket/in", recursive=True)
    local, remote = (parameters_by_path(load_hf(p)) for p in (source, "gs://bucket/in"))
    for name in local:
        np.testing.assert_array_equal(local[name][...], remote[name][...])

    model = load_hf(source)
    parameters = parameters_by_path(model)
    for output in ("gs://bucket/deep/out", str(tmp_path / "out")):
        options = ExportOptions(shard_bytes=60_000)
        export_hf(lambda path: parameters[path][...], model.config, output, options)
    for file in (tmp_path / "out").iterdir():
        assert bucket.cat(f"gs://bucket/deep/out/{file.name}") == file.read_bytes()


def test_nothing_is_left_of_a_failed_export(bucket, tmp_path):
    model = load_hf(save_llama(tmp_path))
    parameters = parameters_by_path(model)

    def fails(path):
        if path == "layers/key":
            raise OSError(28, "No space left on device")
        return parameters[path][...]

    for output in ("gs://bucket/out", str(tmp_path / "out")):
        with pytest.raises(UserError, match="No space left on device. Nothing was kept"):
            export_hf(fails, model.config, output, ExportOptions(shard_bytes=10_000))
    assert not bucket.store and not list(tmp_path.glob("out*"))


def test_truncated(bucket, tmp_path):
    source = save_llama(tmp_path / "in")
    bucket.put(source, "gs://bucket/in", recursive=True)
    file = "gs://bucket/in/model.safetensors"
    bucket.pipe(file, bucket.cat(file)[:-1])
    with pytest.raises(UserError, match="truncated"):
        load_hf("gs://bucket/in")


def test_absent(bucket, monkeypatch):
    with pytest.raises(UserError, match="gs://bucket/none: no such folder"):
        resolve("gs://bucket/none")

    def refuses(*arguments):
        raise RuntimeError("no credentials\nand much more")

    monkeypatch.setattr(Bucket, "isdir", refuses)
    with pytest.raises(UserError, match="cannot be read: no credentials. Log in"):
        resolve("gs://bucket/in")
