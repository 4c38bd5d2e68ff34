"""Commands that are started without their packages print one line with the remedy."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python without the packages of its environment (``-S``)."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize("module", ["llama_cpt.train", "llama_cpt.fit_law", "examples.demo"])
def test_command_without_its_packages_prints_one_line(module):
    ran = python("-m", module)
    assert ran.returncode == 78 and ran.stdout == ""
    assert ran.stderr.startswith(f"error: {sys.executable} does not have the packages etils, ")
    assert ran.stderr.count("\n") == 1
    assert "-m pip install -e " in ran.stderr or ".venv/bin/python" in ran.stderr


def test_import_without_packages_is_an_import_error():
    ran = python("-c", "import llama_cpt")
    assert "ModuleNotFoundError: " in ran.stderr and "does not have the packages" in ran.stderr
