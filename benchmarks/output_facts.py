"""A reader of the values that ``benchmarks.equivalence`` compares.

This module does not import the package under test. It reads each file with the library that defines
the file's format.
"""

from collections.abc import Callable, Iterator
import csv
from dataclasses import dataclass
from fnmatch import fnmatchcase
import json
from pathlib import Path
import re
from typing import Any

import numpy as np

from benchmarks.renames import Renames

Facts = dict[str, Any]
"""Values keyed by name. A value is a JSON field, a table cell, a record or a tensor."""

EXEMPT_FILES = {
    "*.md": "prose",
    "*.html": "prose",
    "log.txt": "console text",
    "*.png": "pictures",
    "recommended.*": "option names and prose; law.json has the numbers",
    "tensorboard": "the numbers of metrics.jsonl, with times",
    "*.lock": "empty",
    "*.manifest-*.json": "digests of Orbax's files, which contain times; the arrays are compared",
    "*.npy.json": "digest of a .npy file, which is compared",
}
_IDENTITY = "digest of a checkpoint's files, which contain times; its arrays are compared"
# A pattern is matched with the key, with the dotted path, and with "FILE: DOTTED.PATH".
EXEMPT_KEYS = {
    "perf/tokens_per_second": "wall clock",
    "perf/mfu": "wall clock",
    "perf/goodput": "wall clock",
    "perf/unix_seconds": "wall clock",
    "perf/evaluation_seconds": "wall clock",
    "perf/seconds/*": "wall clock",
    "seconds": "wall clock of a trial",
    "step_seconds": "wall clock of a trial",
    "evaluation_seconds": "wall clock of a trial",
    "modified": "modification time of a source file",
    "origin": "name of a function in a compiled program; its arrays are compared",
    "*.reference model": _IDENTITY,
    "*.settings.json: model": _IDENTITY,
}
# The name of a folder that is the digest of a config. The digest depends on the fields' names.
_DIGEST = re.compile(r"(?<=/)[0-9a-f]{32}(?=/)")
_CHECKPOINT_MARK = "_METADATA"


@dataclass(frozen=True)
class Reader:
    """A reader of one output's artifacts, which are files and checkpoints.

    All names are translated to shared names. If the two trees use different names, the shared names
    are those of the tree that is compared with the reference.
    """

    results: Path
    renames: Renames
    """The map from this output's names to shared names; an empty map if they are equal."""
    exempt: frozenset[str]
    """Patterns of JSON keys that are not compared, in this output's names."""
    paths: tuple[tuple[str, str], ...] = ()
    """Pairs of an absolute path that occurs in values, and the text that replaces it."""

    def artifacts(self) -> dict[str, Path]:
        """Return the paths of all artifacts, keyed and sorted by shared name.

        Raises ValueError if two artifacts have the same shared name.
        """
        found: dict[str, Path] = {}
        for path in _walk(self.results):
            name = self.renames.apply("file", path.relative_to(self.results).as_posix())
            name = _DIGEST.sub("DIGEST", name)
            if name in found:
                raise ValueError(f"{path} and {found[name]} are both named {name}")
            found[name] = path
        return dict(sorted(found.items()))

    def facts(self, path: Path) -> Facts:
        """Return the values of one artifact, keyed by shared name."""
        if path.is_dir():
            return self._checkpoint(path)
        readers: dict[str, Callable[[Path], Facts]] = {
            ".json": lambda file: self._json(json.loads(file.read_bytes()), file.name),
            ".jsonl": self._lines,
            ".csv": self._table,
            ".array_record": _records,
            ".safetensors": _tensors,
            ".npy": lambda file: {"array": np.load(file)},
        }
        return readers.get(path.suffix, lambda file: {"bytes": file.read_bytes()})(path)

    def _json(self, value: Any, file: str, label: str = "") -> Facts:
        found: Facts = {}
        for path, leaf in _leaves(value):
            if not self._is_exempt(path, file):
                name = label + self._key(path)
                if name in found:
                    raise ValueError(f"two fields are named {name}")
                found[name] = self._value(leaf)
        return found

    def _is_exempt(self, path: tuple[str, ...], file: str) -> bool:
        whole = ".".join(path)
        names = (*path[-1:], whole, f"{file}: {whole}")
        return any(fnmatchcase(name, pattern) for name in names for pattern in self.exempt)

    def _lines(self, path: Path) -> Facts:
        found: Facts = {}
        for number, line in enumerate(path.read_text("utf-8").rstrip("\n").split("\n"), 1):
            found |= self._json(json.loads(line), path.name, f"line {number}: ")
        return found

    def _table(self, path: Path) -> Facts:
        with path.open(newline="", encoding="utf-8") as file:
            return {
                f"row {number}: {self.renames.apply('column', column)}": self._value(cell)
                for number, row in enumerate(csv.DictReader(file), 1)
                for column, cell in row.items()
                if column not in self.exempt
            }

    def _checkpoint(self, path: Path) -> Facts:
        """Return the arrays and the JSON metadata of a checkpoint, as read by Orbax."""
        import jax
        import orbax.checkpoint as ocp

        handler = ocp.PyTreeCheckpointer()
        metadata = handler.metadata(path.absolute())
        saved = metadata.item_metadata
        assert saved is not None
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved.tree)
        restored = handler.restore(path.absolute(), restore_args=as_numpy)
        found = {
            self.renames.apply("array", "/".join(names)): array
            for names, array in _leaves(restored)
        }
        return found | self._json(metadata.custom_metadata, path.name, "about: ")

    def _key(self, path: tuple[str, ...]) -> str:
        segments = tuple(map(self._segment, path))
        name = self.renames.apply("field", ".".join(segments))
        return self.renames.apply("json_key", name)

    def _segment(self, key: str) -> str:
        """Return the shared name of a key. A key with "/" is the name of a metric or an array."""
        return self.renames.apply("array", self.renames.apply("metric", key)) if "/" in key else key

    def _value(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        for path, name in self.paths:
            value = value.replace(path, name)
        return self.renames.apply("identifier", self.renames.apply("file", value))


def exempt_keys(renames: Renames) -> frozenset[str]:
    """Return the patterns of EXEMPT_KEYS, with old names replaced by new names of ``renames``."""
    metrics = {renames.apply("metric", key) for key in EXEMPT_KEYS}
    return frozenset(renames.apply("json_key", key) for key in metrics)


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if any(fnmatchcase(path.name, pattern) for pattern in EXEMPT_FILES):
            continue
        if path.is_dir() and not (path / _CHECKPOINT_MARK).exists():
            yield from _walk(path)
        else:
            yield path


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path and value of each leaf of nested dicts and lists.

    An empty dict or list is a leaf.
    """
    if isinstance(value, dict) and value:
        pairs = list(value.items())
    elif isinstance(value, list | tuple) and value:
        pairs = list(enumerate(value))
    else:
        yield path, value
        return
    for key, deeper in pairs:
        yield from _leaves(deeper, (*path, str(key)))


def _records(path: Path) -> Facts:
    """Return each record of an ArrayRecord file as uint32 words, which are tokens.

    The first two words of a held-out document are the byte count of the source text, not tokens.
    """
    from array_record.python import (
        array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
    )

    reader = array_record_module.ArrayRecordReader(str(path))
    try:
        records = reader.read_all()
    finally:
        reader.close()
    return {f"row {n}": np.frombuffer(record, "<u4") for n, record in enumerate(records)}


def _tensors(path: Path) -> Facts:
    """Return the dtype, shape and bytes of each tensor in a safetensors file.

    The file consists of the header's length, a JSON header, and the tensors' bytes.
    """
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    found: Facts = {
        f"metadata: {key}": value for key, value in header.pop("__metadata__", {}).items()
    }
    for name, about in header.items():
        first, last = about["data_offsets"]
        found[f"{name} type"] = [about["dtype"], about["shape"]]
        found[name] = content[start + first : start + last]
    return found
