"""Tests that only the primary process shows progress lines."""

from llama_cpt.runtime import progress


def run(monkeypatch, capsys) -> str:
    times = iter(range(0, 1000, 11))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with progress.Progress("read rows", 4.0, "GB") as shown:
        shown.update(2.0)
    return capsys.readouterr().err


def test_progress_is_shown_unless_disabled(monkeypatch, capsys):
    assert "read rows: 2 of 4 GB (50%)" in run(monkeypatch, capsys)
    progress.enable_progress(False)
    try:
        assert run(monkeypatch, capsys) == ""
    finally:
        progress.enable_progress(True)
