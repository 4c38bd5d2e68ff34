import os
import time

import pytest

from llama_cpt.evaluation import sandbox
from llama_cpt.evaluation.sandbox import run_python
from llama_cpt.evaluation.system_calls import filter_program

pytestmark = pytest.mark.skipif(filter_program() is None, reason="no filter for this machine")


def test_what_ends_well_has_passed_and_what_only_ends_has_not():
    assert run_python("import math, decimal, re\nassert math.sqrt(4) == 2").status == "passed"
    for program in (
        "assert False",
        "syntax error",
        "raise SystemExit(0)",
        "import os; os._exit(0)",
    ):
        assert run_python(program).status == "failed"


@pytest.mark.parametrize(
    "attempt",
    [
        "os.fork()",
        "subprocess.run(['true'])",
        "threading.Thread(target=print).start()",
        "socket.socket()",
        "os.kill(os.getppid(), 0)",
        "open(path, 'a')",
        "os.remove(path)",
        "os.mkdir(path + 's')",
        "os.rename(path, path + 's')",
        "bytearray(4 << 30)",
    ],
)
def test_what_is_refused(attempt, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    # Whoever is root may write everywhere else.
    os.chmod(tmp_path, 0o777)
    refused = "(OSError, RuntimeError, MemoryError)"
    program = (
        "import os, socket, subprocess, threading\n"
        f"path = {str(kept)!r}\nopen(path).read()\n"
        f"try:\n    {attempt}\nexcept {refused}:\n    pass\nelse:\n    raise SystemExit(1)\n"
    )
    assert run_python(program).status == "passed"
    assert [file.read_text() for file in tmp_path.iterdir()] == ["as it was"]


@pytest.mark.parametrize("forever", ["time.sleep(1000)", "while True: print('a' * 999)"])
def test_what_never_ends_is_ended(forever):
    start = time.monotonic()
    assert run_python(f"import time\n{forever}", seconds=0.5).status == "too long"
    assert time.monotonic() - start < 60


def test_without_a_filter_nothing_runs(monkeypatch):
    monkeypatch.setattr(sandbox, "filter_program", lambda: None)
    with pytest.raises(ValueError, match="Linux only"):
        run_python("pass")
