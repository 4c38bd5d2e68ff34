"""The command that updates ``tests/golden/tpu.json``.

    python -m tests.golden.refresh [--all] [PYTEST OPTION ...]

The command runs all tests that compile for TPUs, in two processes. A program whose key is in the
file is not compiled again, unless ``--all`` is given. Programs that no test uses are removed from
the file. If every program has changed, the command takes about twenty minutes on two cores.
"""

import json
from pathlib import Path
import subprocess
import sys
import tempfile

from tests.golden import tpu_programs

ROOT = Path(__file__).resolve().parents[2]
# Each worker gets one test at a time, because some tests compile for minutes.
SHARED = ["-n", "2", "--dist", "load", "--maxschedchunk", "1"]
PYTEST = ["-m", "pytest", *SHARED, "-m", "libtpu and not proof", "-q", "--durations=10"]


def main(arguments: list[str]) -> int:
    """Run the tests, write the file, and return the exit status of pytest."""
    if "--all" in arguments:
        tpu_programs.write({})
    options = [one for one in arguments if one != "--all"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *PYTEST, f"--refresh-goldens={folder}", *options]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        used = {}
        for path in sorted(Path(folder).glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                used |= json.loads(line)
    # If only some tests were selected, or a test failed, programs of other tests stay in the file.
    complete = not options and status == 0
    tpu_programs.write(used if complete else tpu_programs.read() | used)
    print(f"{tpu_programs.FILE}: {len(used)} programs in use")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
