"""Long proofs, run manually: ``python -m tests.proofs [NAME ...]``.

A proof is a pytest command that takes too long for every change; the regular tests run a short
version of it. Each run adds a line with its result, seconds and commit to docs/notes/proofs.md.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
import os
from pathlib import Path
import re
import shlex
import subprocess
import sys
import time

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "notes" / "proofs.md"
HEADER = """# Proofs

`make proofs` runs what takes too long for every change and adds a line for each command.

| date | commit | proof | command | result | seconds |
| --- | --- | --- | --- | --- | --: |
"""


@dataclass(frozen=True)
class Proof:
    """A pytest command and the environment variables that make it long."""

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """The shell command that repeats the proof."""
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        return " ".join([*settings, "pytest", shlex.join(self.arguments)])


ALL = ("-m", "slow or proof")
PROOFS = (
    Proof("plan-table", ("-m", "proof", "tests/planning/test_plan_table.py")),
    Proof(
        "law-recovery",
        (*ALL, "tests/mixture_law/test_recovery.py"),
        {"LLAMA_CPT_DRAWS": "200"},
    ),
    Proof(
        "random-kills",
        (
            *ALL,
            "tests/training/test_survival.py",
            "tests/processes/test_lost_process.py::test_run_survives_kills_at_random_moments",
        ),
        {"LLAMA_CPT_KILLS": "20"},
    ),
)


def main(names: list[str]) -> int:
    """Run the proofs of these names, or all; return 1 if one failed."""
    known = {proof.name: proof for proof in PROOFS}
    if unknown := set(names) - known.keys():
        print(f"error: unknown proof {min(unknown)}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    statuses = [run(known[name]) for name in names or known]
    return int(any(statuses))


def run(proof: Proof) -> int:
    """Run one proof, add its line to the record and return pytest's exit status."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *proof.arguments]
    start, closing = time.monotonic(), ""
    environment = os.environ | proof.environment
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            closing = line if re.search(r"\d+ (passed|failed|error|skipped)", line) else closing
    record(proof, closing, time.monotonic() - start)
    return process.returncode


def record(proof: Proof, closing: str, seconds: float) -> None:
    """Add a line to the record."""
    result = ", ".join(re.findall(r"\d+ (?:passed|failed|errors?|skipped)", closing))
    commit = _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain") else "")
    date = datetime.now(UTC).date()
    RECORD.parent.mkdir(exist_ok=True)
    text = RECORD.read_text(encoding="utf-8") if RECORD.exists() else HEADER
    row = f"| {date} | {commit} | {proof.name} | `{proof.command}` | {result} | {seconds:.0f} |"
    RECORD.write_text(f"{text}{row}\n", encoding="utf-8")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
