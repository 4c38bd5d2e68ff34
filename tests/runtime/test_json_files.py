"""The bounded JSON reader returns objects, and rejects all other content with one UserError."""

import json
import os
from pathlib import Path

import pytest

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import MAX_DEPTH, parse_json_object, read_json_object


@pytest.mark.parametrize(
    "content", [b'{"a": [1, {"b": null}]}', b'\xef\xbb\xbf{"a": [1, {"b": null}]}']
)
def test_an_object_is_read_with_and_without_a_byte_order_mark(content: bytes, tmp_path: Path):
    (tmp_path / "file.json").write_bytes(content)
    assert read_json_object(str(tmp_path / "file.json"), "fix it") == {"a": [1, {"b": None}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[1]", "must be a JSON object"),
        (b'{"a": ' + b"[" * 100_000, "nested more than 100 deep"),
        (b'{"a": ' * 100_000, "nested more than 100 deep"),
        (b'{"a": ' * 200 + b"1" + b"}" * 200, "nested more than 100 deep"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "not JSON"),
        (b'{"a": "' + b"x" * 1_000 + b'"}', "has more than 999 bytes"),
    ],
)
def test_other_content_is_rejected_with_the_remedy(content: bytes, message: str, tmp_path: Path):
    file = str(tmp_path / "file.json")
    Path(file).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json_object(file, "fix it", max_bytes=999 if "999" in message else 1 << 24)
    text = str(error.value)
    assert text.startswith(f"{file}: ") and message in text and text.endswith("; fix it.")
    assert "\n" not in text and len(text) < 300


def test_missing_files_folders_and_pipes_are_rejected(tmp_path: Path):
    """A named pipe without a writer would block the reader."""
    os.mkfifo(tmp_path / "pipe.json")
    for name, message in (("absent.json", "no such file"), ("pipe.json", "not a regular file")):
        with pytest.raises(UserError, match=message):
            read_json_object(str(tmp_path / name), "fix it")
    with pytest.raises(UserError, match="not a regular file"):
        read_json_object(str(tmp_path), "fix it")
    (tmp_path / "long.json").write_text('{"a": 1}')
    assert read_json_object(str(tmp_path / "long.json"), "fix it", max_bytes=8) == {"a": 1}
    with pytest.raises(UserError, match="long.json: has more than 7 bytes; fix it"):
        read_json_object(str(tmp_path / "long.json"), "fix it", max_bytes=7)


def test_the_limit_of_depth_is_exact():
    for depth, deep in ((MAX_DEPTH, False), (MAX_DEPTH + 1, True)):
        content = b'{"a": ' + b"[" * (depth - 1) + b"1" + b"]" * (depth - 1) + b"}"
        if deep:
            with pytest.raises(UserError, match="nested more than"):
                parse_json_object(content, "file", "fix it")
        else:
            assert parse_json_object(content, "file", "fix it") == json.loads(content)


def test_repeated_names_are_rejected_on_request():
    content = b'{"a": {"b": 1, "c": 2, "b": 3}}'
    assert parse_json_object(content, "file", "fix it") == {"a": {"b": 3, "c": 2}}
    with pytest.raises(UserError, match="the name 'b' occurs twice"):
        parse_json_object(content, "file", "fix it", unique_names=True)
