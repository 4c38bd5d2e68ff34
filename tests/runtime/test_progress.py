"""Tests that only the primary process shows progress lines, and of their rates."""

import jax

from llama_cpt.runtime import compile_time, progress


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


def test_rate_leaves_out_excluded_time(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress("score", 400.0, "tokens") as shown:
        now[0] = 100.0
        progress.exclude_seconds(90.0)
        shown.update(100.0)
    line = "score: 100 of 400 tokens (25%), 10 tokens/s, 30s left"
    assert capsys.readouterr().err.split("\n") == [f"{line:<78}", ""]


def test_compilation_is_excluded(monkeypatch):
    excluded = []
    monkeypatch.setattr(compile_time, "exclude_seconds", excluded.append)
    compile_time.exclude_compilation()
    jax.jit(lambda x: x + len(excluded))(1.0)
    assert excluded and all(seconds > 0 for seconds in excluded)
