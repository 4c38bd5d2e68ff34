"""The list of documents that are left out is compact, and damage to its file is an error."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from llama_cpt.data.prepare.dropped import (
    DROPPED_FILE,
    REASONS,
    DroppedLists,
    dropped_documents,
    dropped_in,
    read_dropped,
    write_dropped,
)
from llama_cpt.data.sources.blocks import Block
from llama_cpt.data.sources.files import Sources
from llama_cpt.runtime.errors import UserError

FILES = ("a.jsonl", "b.jsonl", "c.jsonl")
SOURCE = {"bytes": 7, "modified": "5", "digest": "00"}


def lists_of(dropped):
    """Return the lists of a corpus with three source files, and of one without documents."""
    sources = {"en": [{"path": path, **SOURCE} for path in FILES], "zh": [{"path": "z", **SOURCE}]}
    corpora = {"en": dropped, "zh": dropped_documents(*np.zeros((3, 0), np.int64))}
    return DroppedLists(("duplicate", "overlap"), "k", corpora, sources)


def test_read_lists_are_the_written_lists(tmp_path):
    draw = np.random.default_rng(0)
    # Documents one by one and in runs; no document of the second file.
    documents = {
        (file, int(number)): int(draw.integers(2))
        for file in (0, 2)
        for number in np.flatnonzero(np.repeat(draw.random(4000) < 0.4, draw.integers(1, 9, 4000)))
    }
    files, numbers = np.array(list(documents)).T
    dropped = dropped_documents(files, numbers, np.array(list(documents.values())))
    write_dropped(str(tmp_path), lists_of(dropped))
    found = read_dropped(str(tmp_path))
    assert found.of("en").digest == dropped.digest != found.of("zh").digest == ""
    assert (found.options, found.key, found.sources) == (
        ("duplicate", "overlap"),
        "k",
        lists_of(dropped).sources,
    )
    by_path = found.of("en").by_path(Sources("en", FILES))
    for file, path in enumerate(FILES):
        for first in range(1, 20_000, 997):
            block = Block(path, first, b"\n" * 996, 996, 0.0)
            assert dropped_in(block, by_path) == {
                number: REASONS[documents[file, number]]
                for number in range(first, first + 997)
                if (file, number) in documents
            }
    content = (tmp_path / DROPPED_FILE).read_bytes()
    write_dropped(str(tmp_path), found)
    assert (tmp_path / DROPPED_FILE).read_bytes() == content
    assert max(map(len, gzip.decompress(content).splitlines())) < 20_000
    assert len(content) < 3 * len(documents)


def test_whole_file_is_left_out(tmp_path):
    write_dropped(str(tmp_path), lists_of(dropped_documents(*np.array([[1], [0], [1]]))))
    by_path = read_dropped(str(tmp_path)).of("en").by_path(Sources("en", FILES))
    assert dropped_in(Block("b.jsonl", 0, ["text"], 4, 0.0), by_path) == {0: "overlap"}
    assert dropped_in(Block("a.jsonl", 0, ["text"], 4, 0.0), by_path) == {}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"duplicate", "documents": "3 5-7"', b'"duplicate", "documents": "3 x"'),
        (b"3 5-7", b"3 7-5"),
        (b"3 5-7", b"3-6 5-7"),
        (b"3 5-7", b"99999999999999999999"),
        (b'"documents": "3 5-7"', b'"documents": 3'),
        (b'"file": 2, "reason"', b'"file": 3, "reason"'),
        (b'"reason": "duplicate"', b'"reason": "other"'),
        (b'{"corpus": "zh", "file": 0, "path"', b'{"corpus": "ar", "file": 0, "path"'),
        (b'"corpora": {"en": 3', b'"corpora": {"en": 4'),
        (b'"key": "k"', b'"name": "k"'),
        (b"}\n", b"\n"),
    ],
)
def test_damaged_file_is_an_error(old, new, tmp_path):
    rows = [(2, 3, 0), (2, 5, 0), (2, 6, 0), (2, 7, 0)]
    write_dropped(str(tmp_path), lists_of(dropped_documents(*np.array(rows).T)))
    file = tmp_path / DROPPED_FILE
    content = gzip.decompress(file.read_bytes())
    assert old in content
    file.write_bytes(gzip.compress(content.replace(old, new)))
    check_error(tmp_path)


def test_file_that_is_not_complete_is_an_error(tmp_path):
    write_dropped(str(tmp_path), lists_of(dropped_documents(*np.array([[1], [2], [0]]))))
    content = (tmp_path / DROPPED_FILE).read_bytes()
    for damaged in (b"", b"{}", content[:-20], content[:40] + b"0" + content[41:]):
        (tmp_path / DROPPED_FILE).write_bytes(damaged)
        check_error(tmp_path)


def check_error(folder: Path) -> None:
    """Check that the file causes an error that names it."""
    with pytest.raises(UserError, match=rf"{DROPPED_FILE}: not a list of dropped documents; dele"):
        read_dropped(str(folder))


def test_list_of_an_earlier_version_is_an_error(tmp_path):
    (tmp_path / "dropped.json").write_text("{}")
    with pytest.raises(UserError, match="an earlier version wrote this list"):
        read_dropped(str(tmp_path))
