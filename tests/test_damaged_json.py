"""JSON files of runs, corpora, scores and pipelines: damage is a UserError that names the file."""

from collections.abc import Callable
import json
from pathlib import Path
import random
from typing import Any

from etils import epath
import pytest

from llama_cpt.config.loading import load_config
from llama_cpt.config.schema import TrainConfig
from llama_cpt.data.prepare.shards import finished_shards
from llama_cpt.data.rows import read_manifest
from llama_cpt.data.sources.files import describe_changes
from llama_cpt.evaluation.comparison.compare import setting_differences, shots_of
from llama_cpt.evaluation.learning_curves import read_curve
from llama_cpt.evaluation.scores import read_task, start_task
from llama_cpt.pipelines.evaluation import read_cache
from llama_cpt.runtime.errors import UserError, first_line

VALUES: tuple[Any, ...] = (None, True, -1, 0, 1.5, 10**400, "", "\x1b[31m", [], {}, [[]], {"a": 1})
VALUES += ("x" * 5000,)
MANIFEST = {
    "corpus": "zh",
    "tokenizer": "f",
    "sequence_length": 8,
    "text_field": "text",
    "bad_documents": "error",
    "sources": [{"path": "a", "bytes": 1, "modified": "1", "digest": "d"}],
    "shards": [["rows-00000-of-00001.array_record", 3]],
    "documents": 3,
    "tokens": 27,
    "dropped_tokens": 0,
    "source_bytes": 9,
    "characters": 9,
    "skipped": {"empty text": 1},
    "checked_documents": 0,
    "lossy_documents": 0,
    "chat": {"kind": "conversations", "learn": "all"},
    "document_tokens": [[1], 2],
}
SUMMARY = {name: 1 for name in "records documents tokens dropped_tokens source_bytes".split()} | {
    "characters": 1,
    "skipped": {},
    "checked_documents": 0,
    "lossy_documents": 0,
    "digest": "d",
    "formats": {},
    "units": 0,
    "chat_counts": {"places": 1},
}
RUN = {"global_batch_size": 4, "data": {"sequence_length": 256}}
SCORE = {"task": "t", "group": "", "id": "1", "metric": "acc", "score": 1.0, "detail": {"a": 1}}


def manifest(file: Path) -> object:
    """Read a manifest, and use its fields as ``prepare`` does."""
    found = read_manifest(str(file.parent))
    assert found is not None
    now = [{"path": "a", "bytes": 1, "modified": "1"}]
    assert found.rows >= 0 and found.fingerprint
    return describe_changes(now, found.sources)


def curve(file: Path) -> object:
    """Read the learning curve of the run with the config ``file``."""
    points = [{"step": step, "eval/zh/bits_per_byte": 2.0} for step in (0, 1)]
    (file.parent / "metrics.jsonl").write_text("".join(json.dumps(p) + "\n" for p in points))
    return read_curve(str(file.parent), "label", ("zh",))


def settings(file: Path) -> object:
    """Read the settings of a task in all ways."""
    shots_of([str(file.parent)])
    setting_differences([str(file.parent)])
    return start_task(file.parent, "t", {"shots": 5})


READERS: dict[str, tuple[str, Any, Callable[[Path], object]]] = {
    "manifest": ("manifest.json", MANIFEST, manifest),
    "summary": ("00000.json", SUMMARY, lambda file: finished_shards(epath.Path(file.parent))),
    "curve": ("config.json", RUN, curve),
    "settings": ("t.settings.json", {"shots": 5}, settings),
    "score": ("t.jsonl", SCORE, read_task),
    "cache": (
        "a.json",
        {"fingerprint": "f", "answers": ["a"]},
        lambda file: read_cache(epath.Path(file), "redo it"),
    ),
    "config": ("a.json", RUN, lambda file: load_config(str(file), [], TrainConfig)),
}


def mutated(value: Any, rng: random.Random) -> Any:
    """Return ``value`` with one entry, at any depth, replaced, removed or added."""
    entries = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(entries)
    changed: Any = dict(value) if isinstance(value, dict) else list(value)
    if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.6:
        changed[key] = mutated(value[key], rng)
    elif rng.random() < 0.2:
        del changed[key]
    else:
        changed[key] = rng.choice(VALUES)
    return changed


@pytest.mark.parametrize("name", READERS)
def test_damage_is_a_user_error(tmp_path, name):
    file, value, read = tmp_path / READERS[name][0], READERS[name][1], READERS[name][2]
    rng, content = random.Random(3), (json.dumps(value) + "\n").encode()
    if name != "config":
        file.write_bytes(content)
        read(file)
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n"
    damaged = [b"", b"\xff\xfe\n", b"[]\n", b"5\n", b"null\n", content[:-9] + b"\n", deep]
    damaged += [(json.dumps(mutated(value, rng)) + "\n").encode() for _ in range(150)]
    errors = 0
    for one in damaged:
        file.write_bytes(one)
        try:
            read(file)
        except UserError as error:
            errors += 1
            assert len(str(error)) < 1500
            assert str(file) in str(error) or str(tmp_path) in str(error)
    assert errors >= 5


def test_first_line_has_text():
    assert first_line(ValueError("\n \n  one \ntwo")) == "one"
    assert first_line(ValueError("\n")) == r"ValueError('\n')"
