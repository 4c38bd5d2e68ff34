"""Tests of the format and the level of log lines, and of a progress line on a terminal."""

import io
import logging
import re

import pytest

from llama_cpt.runtime import logs, progress
from llama_cpt.runtime.errors import one_line_errors


def write_log(name: str) -> None:
    logging.getLogger(name).info("an info of %s", name)
    logging.getLogger(name).warning("a warning of %s", name)


def test_lines_have_time_process_and_level(capsys):
    with one_line_errors():
        logs.set_process_index(3)
        write_log("llama_cpt.training.trainer")
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(
        f"{time} p3 INFO an info of llama_cpt.training.trainer\n"
        f"{time} p3 WARNING a warning of llama_cpt.training.trainer\n",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize("name, lines", [("__main__", 2), ("orbax", 1), ("llama_cpt", 2)])
def test_each_line_is_written_once_and_info_for_this_package_only(name, lines, capsys):
    logging.root.addHandler(logging.StreamHandler())  # As absl does for a library that logs early.
    logs.configure_logging()
    logs.configure_logging()
    write_log(name)
    assert capsys.readouterr().err.count("\n") == lines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_log_line_erases_the_progress_line(monkeypatch):
    logs.configure_logging()
    terminal = Terminal()
    monkeypatch.setattr(logs.sys, "stderr", terminal)
    with progress.Progress("read rows", 4.0, "GB") as shown:
        shown._shown -= 1
        shown.update(2.0)
        write_log("llama_cpt")
    before, erased, log, last = re.split(r"\r( {100})\r", terminal.getvalue(), maxsplit=1) + [""]
    assert before.startswith("\rread rows: 2 of 4 GB (50%)") and erased.isspace() and not last
    assert [line.split()[-1] for line in log.splitlines()] == ["llama_cpt", "llama_cpt"]
