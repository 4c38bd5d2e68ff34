"""Damaged manifests and files that are not regular are damage, and never hang or raise."""

import copy
import json
from pathlib import Path
from typing import Any

from etils import epath
import pytest

from llama_cpt.checkpoint import manifest
from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.run_folder import CHECKPOINTS_FOLDER, open_run
from llama_cpt.runtime.errors import UserError
from tests.special_files import KINDS, make_special_file

FILES = {"_METADATA": b"{}", "_CHECKPOINT_METADATA": b"{}", "d/0": b"array" * 9, "d/1": b"x"}
DEEP = "[" * 100_000 + "]" * 100_000
WRONG = (None, True, -1, 0, 2.5, 10**30, "x", "../3/d/0", [], {}, [5], [9, None], ["9", "a"])


def make_checkpoint(folder: Path, step: int = 3) -> epath.Path:
    """Write ``FILES`` and a manifest, and return the folder of the checkpoint."""
    for name, content in FILES.items():
        path = folder / str(step) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    checkpoint = epath.Path(folder / str(step))
    manifest.commit(checkpoint, 0, 1)
    assert manifest.find_damage(checkpoint) is None
    return checkpoint


def manifest_of(checkpoint: epath.Path) -> Path:
    return Path(f"{checkpoint}.manifest-00000-of-00001.json")


def replace_at(values: Any, keys: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of ``values`` with ``value`` at the path ``keys``."""
    changed = copy.deepcopy({"root": values})
    place = changed
    for key in ("root", *keys)[:-1]:
        place = place[key]
    place[("root", *keys)[-1]] = value
    return changed["root"]


def test_mutated_manifests_are_damage(tmp_path):
    checkpoint = make_checkpoint(tmp_path)
    file = manifest_of(checkpoint)
    content = json.loads(file.read_text())
    size, digest = content["files"]["d/0"]
    paths = [(), ("step",), ("all_files",), ("files",), ("files", "d/0")]
    mutations = [replace_at(content, keys, wrong) for keys in paths for wrong in WRONG]
    mutations += [
        replace_at(content, ("files", "d/0", place), wrong) for place in (0, 1) for wrong in WRONG
    ]
    mutations += [{k: v for k, v in content.items() if k != key} for key in ("all_files", "files")]
    for name in ("/etc/hostname", "../3/d/0", "d/../d/0", "d//0", "", "a\0b", "d/0/x", "missing"):
        renamed = {name if k == "d/0" else k: v for k, v in content["files"].items()}
        mutations.append(content | {"files": renamed})
    mutations.append(content | {"files": content["files"] | {"d/0": [size, digest, 1]}})
    for mutation in mutations:
        file.write_text(json.dumps(mutation))
        assert manifest.find_damage(checkpoint), json.dumps(mutation)[:300]
        assert isinstance(manifest.committed_steps(epath.Path(tmp_path)), list)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", DEEP.encode(), b'{"files": ' + DEEP.encode() + b"}", b"9" * 5000],
)
def test_manifest_that_is_not_json_is_damage(content, tmp_path):
    checkpoint = make_checkpoint(tmp_path)
    manifest_of(checkpoint).write_bytes(content)
    assert "manifest cannot be read" in (manifest.find_damage(checkpoint) or "")
    manifest_of(checkpoint).unlink()
    (Path(checkpoint) / "_CHECKPOINT_METADATA").write_bytes(content)
    assert "checkpoints of steps [3] exist" in manifest.unverifiable(epath.Path(tmp_path))


def test_manifest_of_implausible_size_is_not_read(tmp_path, monkeypatch):
    checkpoint = make_checkpoint(tmp_path)
    monkeypatch.setattr(manifest, "MAX_JSON_BYTES", 100)
    assert "is larger than 100 bytes" in (manifest.find_damage(checkpoint) or "")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["_METADATA", "d/0", "d/extra", "extra", "manifest"])
def test_special_file_in_a_checkpoint_is_damage(name, kind, tmp_path):
    checkpoint = make_checkpoint(tmp_path)
    path = manifest_of(checkpoint) if name == "manifest" else Path(checkpoint) / name
    path.unlink(missing_ok=True)
    make_special_file(path, kind)
    damage = manifest.find_damage(checkpoint)
    if (name, kind) in (("d/extra", "folder"), ("extra", "folder")):
        assert damage is None
    else:
        assert damage
    # The folder can be cleaned, and the file to which a link points is kept.
    manifest.discard(epath.Path(tmp_path), 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_special_file_next_to_the_checkpoints_is_ignored(kind, tmp_path, caplog):
    make_checkpoint(tmp_path, 3)
    for name in ("7", "9.manifest-00000-of-00001.json", "11.saving", "²"):
        make_special_file(tmp_path / name, kind)
    folder = epath.Path(tmp_path)
    assert manifest.committed_steps(folder) == [3]
    assert manifest.unverifiable(folder) == ""
    manifest.discard_uncommitted(folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "3",
        "3.manifest-00000-of-00001.json",
        "²",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_special_file_without_a_committed_checkpoint_is_ignored(kind, tmp_path):
    """Then the record of Orbax decides whether a folder is a checkpoint without a manifest."""
    (tmp_path / "7").mkdir()
    make_special_file(tmp_path / "7" / "_CHECKPOINT_METADATA", kind)
    make_special_file(tmp_path / "²", kind)
    folder = epath.Path(tmp_path)
    assert manifest.unverifiable(folder) == ""
    manifest.discard_uncommitted(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["²"]


def test_link_to_a_folder_is_removed_and_its_target_is_kept(tmp_path):
    target = make_checkpoint(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "3").symlink_to(target)
    manifest.discard(epath.Path(tmp_path / "other"), 3)
    assert not list((tmp_path / "other").iterdir()) and manifest.find_damage(target) is None


@pytest.mark.parametrize("kind", ["file", "fifo", "device", "dangling"])
def test_file_in_place_of_the_checkpoints_is_an_error(kind, tmp_path):
    folder = tmp_path / CHECKPOINTS_FOLDER
    folder.write_text("") if kind == "file" else make_special_file(folder, kind)
    with pytest.raises(UserError, match=f"^{folder}: is not a folder, .*; move the file away.$"):
        CheckpointManager(str(folder))
    if kind != "dangling":
        with pytest.raises(UserError, match=f"^{folder}: is not a folder"):
            open_run(str(tmp_path))


def test_start_with_a_fifo_as_the_newest_checkpoint_ends(tmp_path):
    """Without a fix, the start waits forever for a process that writes to the FIFO."""
    checkpoint = make_checkpoint(tmp_path)
    (Path(checkpoint) / "d/0").unlink()
    make_special_file(Path(checkpoint) / "d/0", "fifo")
    with CheckpointManager(str(tmp_path)) as checkpoints:
        with pytest.raises(UserError, match="every checkpoint is damaged"):
            checkpoints.latest_verified()
