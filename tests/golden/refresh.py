"""The command that updates ``tests/golden/tpu.json``.

    python -m tests.golden.refresh [--all] [PYTEST OPTION ...]

It runs every test that compiles for TPUs, two at a time. A program whose hash is in the file is not
compiled again, except with ``--all``. Programs that no test uses are removed. The command takes
about twenty minutes on two cores if every program changed.
"""

import json
from pathlib import Path
import subprocess
import sys
import tempfile

from tests.golden import tpu_programs

ROOT = Path(__file__).resolve().parents[2]
# One test at a time to whichever worker is free: some compile for minutes.
SHARED = ["-n", "2", "--dist", "load", "--maxschedchunk", "1"]
PYTEST = ["-m", "pytest", *SHARED, "-m", "libtpu and not proof", "-q", "--durations=10"]


def main(arguments: list[str]) -> int:
    """Run the tests and write the file; return the tests' exit status."""
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
    # A selection of tests, or tests that stopped early, do not use all programs.
    complete = not options and status == 0
    tpu_programs.write(used if complete else tpu_programs.read() | used)
    print(f"{tpu_programs.FILE}: {len(used)} programs in use")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
