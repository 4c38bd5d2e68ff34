"""Tests of the download of public text into the layout that the studies read."""

import gzip
import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from examples import download_text
from llama_cpt.runtime.errors import UserError, one_line_errors


def shards(folder, articles, each=40):
    """Write the articles as Parquet files of ``each`` rows and return the paths."""
    for start in range(0, len(articles), each):
        part = articles[start : start + each]
        urls = [f"https://example.org/{start + number}" for number in range(len(part))]
        path = folder / f"{start:05}.parquet"
        parquet.write_table(pa.table({"text": part, "url": urls, "title": urls}), path)
    return sorted(folder.glob("*.parquet"))


def lines(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_articles_are_split_by_text_until_the_limit(tmp_path):
    articles = [f"文章{number}。" * 60 for number in range(300)] + ["short"]
    files = shards(tmp_path, articles)
    folder = tmp_path / "corpus" / "zh"
    train, held_out = download_text.write_corpus(files, "zh", folder, 200_000)
    kept = lines(folder / "zh.train-00000.jsonl.gz")
    valid = lines(folder / "zh.valid.jsonl.gz")
    assert (len(kept), len(valid)) == (train, held_out) and held_out > 0
    size = sum(len(one["text"].encode()) for one in kept)
    assert 200_000 <= size < 200_000 + max(len(one.encode()) for one in articles)
    assert not {one["text"] for one in kept} & {one["text"] for one in valid}
    assert kept[0]["source"] == "https://example.org/0"
    # Nothing is left of a download that fails.
    with pytest.raises(UserError, match="wikipedia: the download failed: .*Parquet.*Run the"):
        download_text.write_corpus([__file__], "en", tmp_path / "corpus" / "en", 1)
    assert sorted(path.name for path in (tmp_path / "corpus").iterdir()) == ["zh"]


def test_unknown_language_is_an_error(monkeypatch):
    monkeypatch.setattr(download_text.HfFileSystem, "glob", lambda self, pattern: [])
    with pytest.raises(UserError, match="no such files; use a Wikipedia language code"):
        next(download_text.open_shards("xx"))


def failing(error):
    """Open no file and raise ``error``, as a hub that fails in the middle of a download."""
    yield from ()
    raise error


@pytest.mark.parametrize(
    ("status", "expected"), [(503, 75), (429, 75), (404, 78), (403, 78), (None, 75)]
)
def test_failed_download_has_the_exit_status_of_a_model_download(
    status, expected, tmp_path, monkeypatch, capsys
):
    error = ConnectionError("connection reset")
    if status is not None:
        error.response = SimpleNamespace(status_code=status)  # pyright: ignore
    monkeypatch.setattr(download_text, "open_shards", lambda language: failing(error))
    with pytest.raises(SystemExit) as exited, one_line_errors():
        download_text.main(["zh", "--output", str(tmp_path)])
    assert exited.value.code == expected
    message = capsys.readouterr().err
    assert "datasets/wikimedia/wikipedia: the download failed: connection reset. Run" in message
    assert list((tmp_path / "corpus").iterdir()) == []
