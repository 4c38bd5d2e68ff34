"""Tests of metrics after a kill, after a resume and with values that are not finite."""

import json
import math
import types

from etils import epath
import pytest

from llama_cpt.runtime import metrics
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.metrics import Event, MetricsWriter, SessionLog
from tests.special_files import make_special_file


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events_of(folder):
    """Return the events of each file in order; a record is a length, a CRC, bytes and a CRC."""
    found = []
    for file in sorted((folder / "tensorboard").iterdir()):
        data, events = file.read_bytes(), []
        while data:
            size = int.from_bytes(data[:8], "little")
            events.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
        found.append(events)
    return found


def write_steps(folder, resume_step, steps, loss=1.0):
    writer = MetricsWriter(folder, resume_step)
    for step in steps:
        writer.write(step, {"train/loss": loss + step, "train/zh/loss": loss})
    writer.close()


def test_lines_and_events_have_the_written_values(tmp_path):
    write_steps(tmp_path, None, [1, 2])
    assert lines_of(tmp_path) == [
        {"step": 1, "train/loss": 2.0, "train/zh/loss": 1.0},
        {"step": 2, "train/loss": 3.0, "train/zh/loss": 1.0},
    ]
    [events] = events_of(tmp_path)
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert (2, "train/loss", 3.0) in scalars and len(scalars) == 4


def test_lines_are_on_disk_before_the_writer_is_closed(tmp_path):
    writer = MetricsWriter(tmp_path, None)
    writer.write(1, {"train/loss": 0.5})
    assert lines_of(tmp_path) == [{"step": 1, "train/loss": 0.5}]
    writer.close()
    writer.close()


def test_resume_cuts_back_to_the_restored_step(tmp_path):
    write_steps(tmp_path, None, range(1, 8))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')
    write_steps(tmp_path, 5, [6, 7], loss=100.0)
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["train/loss"] for line in lines[4:]] == [6.0, 106.0, 107.0]
    first, second = events_of(tmp_path)
    starts = [e.step for e in second if e.session_log.status == SessionLog.START]
    assert starts == [6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


@pytest.mark.parametrize("last", [b"", b"\n", b"[1", b'{"step": 4, "train/lo', b"\xff\xfe"])
def test_torn_last_line_is_dropped_without_a_warning(tmp_path, last, caplog):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 3, "train/loss": 1.0}\n' + last)
    write_steps(tmp_path, 3, [4])
    assert [line["step"] for line in lines_of(tmp_path)] == [3, 4] and not caplog.records


DAMAGED_LINES = [
    b"null",
    b'{"step": "x"}',
    b'{"step": true}',
    b'{"step": -1}',
    b'{"step": 1.5}',
    b'{"step": 1, "train/loss": "0.5"}',
    b'{"step": 1, "train/loss": [0.5]}',
    b'{"step": 1, "train/loss": true}',
    b'{"train/loss": 0.5}',
    b'{"step": 1, "train/lo\x00ss',
    b"\xff\xfe",
    b'{"step": 1, "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b"1" * 5000,
]


def test_damaged_lines_are_counted_and_reported_once(tmp_path, caplog):
    file = epath.Path(tmp_path) / metrics.FILE
    good = b'{"step": 3, "train/loss": 1.0}'
    file.write_bytes(b"\n".join([good, *DAMAGED_LINES, good, b""]))
    for _ in range(2):
        assert metrics.read_lines(file) == [{"step": 3, "train/loss": 1.0}] * 2
    [record] = caplog.records
    count = len(DAMAGED_LINES)
    assert f"{file}: {count} damaged lines were skipped (line 2, 3, 4, " in record.message
    caplog.clear()
    file.write_bytes(b"\n".join([good, b"x", good, b"", b"y", b""]))
    metrics.read_lines(file)
    assert "2 damaged lines were skipped (line 2, 5)" in caplog.text


def test_numbers_that_json_lacks_are_null(tmp_path):
    file = epath.Path(tmp_path) / metrics.FILE
    file.write_text(f'{{"step": 1, "a": NaN, "b": -Infinity, "c": 1e999, "d": {"9" * 400}}}\n')
    assert metrics.read_lines(file) == [{"step": 1, "a": None, "b": None, "c": None, "d": None}]


@pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "dangling"])
def test_metrics_file_that_is_not_regular_is_rejected(tmp_path, kind):
    file = tmp_path / "metrics.jsonl"
    make_special_file(file, kind)
    if kind in ("loop", "dangling"):
        assert metrics.read_lines(epath.Path(file)) == []
    else:
        with pytest.raises(UserError, match=r"metrics.jsonl: is not a regular file; remove it"):
            metrics.read_lines(epath.Path(file))


def test_reader_returns_the_lines_up_to_a_step_and_ignores_an_incomplete_one(tmp_path):
    file = epath.Path(tmp_path) / metrics.FILE
    assert metrics.read_lines(file) == []
    write_steps(tmp_path, None, [1, 2, 3])
    with open(file, "a") as torn:
        torn.write('{"step": 2, "train/lo')
    assert [line["step"] for line in metrics.read_lines(file)] == [1, 2, 3]
    assert [line["step"] for line in metrics.read_lines(file, 2)] == [1, 2]


def test_new_run_drops_former_lines(tmp_path):
    """Steps of a run that was killed before its first save are repeated."""
    write_steps(tmp_path, None, [0, 1, 2])
    write_steps(tmp_path, None, [0, 1])
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 1]


def test_start_without_a_line_drops_nothing(tmp_path):
    write_steps(tmp_path, None, [0, 1, 2])
    write_steps(tmp_path, 1, [])
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 1, 2]


def test_non_finite_value_is_null(tmp_path):
    writer = MetricsWriter(tmp_path, None)
    writer.write(1, {"train/loss": math.nan, "train/grad_norm": math.inf, "perf/mfu": 0.5})
    writer.close()
    assert lines_of(tmp_path) == [
        {"step": 1, "train/loss": None, "train/grad_norm": None, "perf/mfu": 0.5}
    ]
    [events] = events_of(tmp_path)
    assert [v.tag for e in events for v in e.summary.value] == ["perf/mfu"]


def test_disabled_writer_creates_no_files(tmp_path):
    writer = MetricsWriter(tmp_path / "run", None, enabled=False)
    writer.write(1, {"train/loss": 1.0})
    writer.close()
    assert not (tmp_path / "run").exists()


def test_remote_folder_gets_copies(tmp_path, monkeypatch):
    """A folder stands for the bucket: files are copied whole, and a resume reads them."""
    local_path = lambda url: epath.Path(tmp_path / url.removeprefix("gs://"))
    monkeypatch.setattr(metrics, "epath", types.SimpleNamespace(Path=local_path))
    monkeypatch.setattr(metrics.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(metrics, "_UPLOAD_SECONDS", -1.0)
    writer = MetricsWriter("gs://bucket/run", None)
    writer.write(1, {"train/loss": 1.0})
    assert [line["step"] for line in lines_of(tmp_path / "bucket/run")] == [1]
    writer.write(2, {"train/loss": 1.0})
    writer.close()
    write_steps("gs://bucket/run", 1, [2, 3], loss=10.0)
    assert [line["train/loss"] for line in lines_of(tmp_path / "bucket/run")] == [1.0, 12.0, 13.0]
    assert len(events_of(tmp_path / "bucket/run")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["bucket"]


def test_transient_error_is_not_a_user_error(tmp_path, monkeypatch):
    def fails(work):
        raise OSError("Input/output error")

    writer = MetricsWriter(tmp_path, None)
    monkeypatch.setattr(metrics, "with_retries", fails)
    with pytest.raises(OSError, match="^Input/output error"):
        writer.write(1, {"train/loss": 1.0})
    writer.close()


def test_full_disk_is_a_user_error(tmp_path):
    writer = MetricsWriter(tmp_path, None)
    writer.write(1, {"train/loss": 1.0})
    assert writer._lines is not None
    writer._lines.close()
    writer._lines = open("/dev/full", "w")
    with pytest.raises(UserError, match="metrics cannot be written: No space left"):
        writer.write(2, {"train/loss": 1.0})
    writer.close()
