"""Tests that a printed command runs in a shell without an activated virtual environment."""

from pathlib import Path
import subprocess
import sys

import pytest

from llama_cpt.runtime import shown_command
from llama_cpt.runtime.shown_command import command_line, interpreter


def make_environment(folder: Path) -> Path:
    """Return the path of a link to the running Python in ``folder/.venv``."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return python


def test_interpreter_inside_the_working_directory_is_relative(tmp_path, monkeypatch):
    python = make_environment(tmp_path / "a project")
    monkeypatch.setattr(shown_command.sys, "executable", str(python))
    monkeypatch.chdir(tmp_path / "a project")
    assert command_line("chat", "a model", "--top-p=1") == (
        ".venv/bin/python -m llama_cpt.chat 'a model' --top-p=1"
    )
    monkeypatch.chdir(python.parent)
    assert interpreter() == "./python"


def test_interpreter_outside_the_working_directory_is_absolute_and_quoted(tmp_path, monkeypatch):
    python = make_environment(tmp_path / "a project")
    monkeypatch.setattr(shown_command.sys, "executable", str(python))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command_line("train") == f"'{python}' -m llama_cpt.train"


@pytest.mark.parametrize("link", ["project", "link"])
def test_printed_command_runs_in_a_fresh_shell(link, tmp_path, monkeypatch):
    """The command also runs if the working directory is a symbolic link."""
    folder = tmp_path / "project"
    make_environment(folder)
    (tmp_path / "link").symlink_to(folder)
    package = folder / "llama_cpt"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "chat.py").write_text("import sys; print(sys.argv[1:])")
    executable = tmp_path / link / ".venv" / "bin" / "python"
    monkeypatch.setattr(shown_command.sys, "executable", str(executable))
    monkeypatch.chdir(tmp_path / link)
    command = command_line("chat", "a 'model'")
    assert command.startswith(".venv/bin/python ")
    shell = ["env", "-i", "PATH=/usr/bin:/bin", "sh", "-c", command]
    printed = subprocess.run(shell, capture_output=True, text=True, check=True).stdout
    assert printed == "[\"a 'model'\"]\n"
