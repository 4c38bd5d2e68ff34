"""Runs long checks, called proofs: ``python -m tests.proofs [NAME ...]``.

A proof is a command that takes too long to run for every change, or that needs the packages of the
extra ``[proofs]``. Each run adds a line to docs/notes/proofs.md with the date, the commit, the
result and the duration.
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

`make proofs` runs the commands that take too long to run for every change. It adds a line to this
table for each command.

| date | commit | proof | command | result | seconds |
| --- | --- | --- | --- | --- | --: |
"""


@dataclass(frozen=True)
class Proof:
    """A command that runs a Python module, with environment variables."""

    name: str
    arguments: tuple[str, ...]
    """The name of the module and its arguments, for ``python -m``."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the command, such as the number of repetitions."""
    result: str = r"\d+ (?:passed|failed|errors?|skipped)"
    """A regular expression that finds the results in a line of output."""

    @property
    def command(self) -> str:
        """The shell command that runs the proof."""
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        return " ".join([*settings, "python -m", shlex.join(self.arguments)])


PYTEST = ("pytest", "-p", "no:cacheprovider")
ALL = (*PYTEST, "-m", "slow or proof")
PROOFS = (
    Proof(
        "docs-site",
        ("mkdocs", "build", "--strict", "--site-dir", "runs/site"),
        result=r"Documentation built|Aborted with \d+ warnings",
    ),
    Proof(
        "notebook",
        ("jupyter", "execute", "examples/law.ipynb"),
        {"PYTHONPATH": "."},
        result=r"Executing notebook|\w*Error",
    ),
    Proof(
        "coverage",
        (*PYTEST, "-n", "2", "--cov=llama_cpt", "--cov=pallas_kernels", "--cov-report=term"),
        result=r"^TOTAL.*|\d+ (?:passed|failed|errors?)",
    ),
    Proof("plan-table", (*PYTEST, "-m", "proof", "tests/planning/test_plan_table.py")),
    Proof(
        "law-recovery",
        (*ALL, "tests/mixture_law/test_recovery.py"),
        {"LLAMA_CPT_DRAWS": "200"},
    ),
    Proof(
        "random-kills",
        (
            *ALL,
            "tests/checkpoint/test_failed_saves.py",
            "tests/training/test_survival.py",
            "tests/processes/test_lost_process.py::test_run_survives_kills_at_random_moments",
        ),
        {"LLAMA_CPT_KILLS": "20"},
    ),
    Proof("processes", (*PYTEST, "-m", "proof", "tests/processes")),
    Proof(
        "real-model-parity",
        (*PYTEST, "-s", "-m", "proof", "tests/weights/test_real_model.py"),
        result=r"\d[\d,]* chats have the same tokens|.* margin .*|\d+ (?:passed|failed|skipped)",
    ),
    Proof("real-model", ("benchmarks.real_model",), result=r"English after .*"),
)


def main(names: list[str]) -> int:
    """Run the named proofs, or all proofs if ``names`` is empty.

    Returns 0 if all proofs passed, 1 if a proof failed, and 2 if a name is unknown.
    """
    known = {proof.name: proof for proof in PROOFS}
    if unknown := set(names) - known.keys():
        print(
            f"error: unknown proof {min(unknown)}; select from {', '.join(known)}.", file=sys.stderr
        )
        return 2
    statuses = [run(known[name]) for name in names or known]
    return int(any(statuses))


def run(proof: Proof) -> int:
    """Run one proof, add a line to the record, and return the exit status of the command."""
    command = [sys.executable, "-m", *proof.arguments]
    start, results = time.monotonic(), []
    environment = os.environ | proof.environment
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            results += re.findall(proof.result, line)
    status = f"exit {process.returncode}"
    record(proof, ", ".join(dict.fromkeys([*results, status])), time.monotonic() - start)
    return process.returncode


def record(proof: Proof, result: str, seconds: float) -> None:
    """Add a line for ``proof`` to docs/notes/proofs.md; create the file if it does not exist."""
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
