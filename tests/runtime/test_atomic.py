"""Tests that a file is written atomically."""

from pathlib import Path

from etils import epath
import pytest

from llama_cpt.runtime.atomic import write_atomic


@pytest.mark.parametrize("kind", [Path, epath.Path])
def test_write_atomic_replaces_the_file(kind, tmp_path):
    path = kind(tmp_path) / "a.json"
    write_atomic(path, "ü")
    write_atomic(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_former_content(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomic(path, "before")

    def fail(self, content):
        raise OSError("disk full")

    monkeypatch.setattr(type(path), "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "after")
    assert path.read_text() == "before"
