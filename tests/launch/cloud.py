"""A fake cloud for the launch scripts, with ``fake_cloud.sh`` in place of ``gcloud`` and
``xpk``."""

from collections.abc import Sequence
import contextlib
from dataclasses import dataclass, field
import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import time

from tests.conftest import ROOT

OF_HOSTS = ("hostname", "mountpoint", "gcsfuse", "sudo", "uv", "curl", "python")
SETTINGS = {
    "PROJECT": "a-project",
    "ZONE": "a-zone",
    "NAME": "cpt",
    "ACCELERATOR_TYPE": "v6e-16",
    "RUNTIME_VERSION": "v2-alpha-tpuv6e",
    "CAPACITY": "spot",
    "SLICES": "1",
    "SERVICE_ACCOUNT": "trainer@a-project",
    "BUCKET": "a-bucket",
    "CONFIG": "configs/llama3/cpt_1b.py",
    "OUTPUT": "gs://a-bucket/runs/cpt",
    "TRAIN_ARGS": "(--data.almr '0.3 3')",
    "EXPORT": "gs://a-bucket/exported/cpt",
}
TIMES = {
    "POLL_SECONDS": "0.05",
    "QUERY_SECONDS": "60",
    "SSH_SECONDS": "60",
    "SETUP_SECONDS": "60",
    "CREATE_SECONDS": "60",
    "DELETE_SECONDS": "60",
    "GRACE_SECONDS": "0",
}

Plan = dict[str, list[str]]
Started = subprocess.Popen[str]
Ran = subprocess.CompletedProcess[str]


def ended(started: Started) -> Ran:
    """Wait until the script exits and return its exit status and output."""
    output, errors = started.communicate(timeout=300)
    return subprocess.CompletedProcess(started.args, started.returncode, output, errors)


@dataclass(frozen=True)
class Cloud:
    """A fake Google Cloud, with its state in a folder, and a checkout with the launch scripts."""

    place: Path
    checkout: Path
    workers: int = 2
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, script: str, *words: str, plan: Plan | None = None, **settings: str) -> Started:
        """Start a launch script with ``settings`` as environment variables.

        ``plan`` maps a verb of ``gcloud`` to the outcomes of its successive calls.
        """
        for verb, lines in (plan or {}).items():
            (self.place / "plan" / verb).write_text("".join(f"{line}\n" for line in lines))
        places = {"MOUNT": str(self.place / "mount"), "COLLECTED": str(self.place / "collected")}
        values = SETTINGS | TIMES | places | settings
        file = self.place / "settings.env"
        file.write_text("".join(f"{key}={value}\n" for key, value in values.items()))
        environment = {
            "PATH": f"{self.place / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.place),
            "SETTINGS": str(file),
            "CLOUD": str(self.place),
            "FAKE_NODES": "cpt-0 cpt-1" if values["SLICES"] == "2" else "cpt",
            "FAKE_WORKERS": str(self.workers),
            "DRY_RUN": settings.get("DRY_RUN", ""),
        } | self.environment
        return subprocess.Popen(
            [self.checkout / "launch" / f"{script}.sh", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *words: str, plan: Plan | None = None, **settings: str) -> Ran:
        """Start a launch script, wait until it exits and return its exit status and output."""
        return ended(self.start(script, *words, plan=plan, **settings))

    def is_up(self) -> None:
        """Run ``create.sh`` and ``setup.sh`` and check that both succeed."""
        (self.place / "request").write_text("ACTIVE")
        (self.place / "mount").symlink_to(self.place / "bucket")
        for worker in range(self.workers):
            host = self.place / "hosts" / "cpt" / str(worker)
            (host / "llama_cpt_venv" / "bin").mkdir(parents=True)
            (host / "llama_cpt_venv" / "bin" / "python").symlink_to(self.place / "bin" / "python")
            (host / "llama_cpt").symlink_to(self.checkout)
            (host / "llama_cpt_revision").write_text(f"{self.revision()}\n")

    def save(self, step: int, run: str = "cpt", processes: int = 2) -> None:
        """Write a checkpoint of two processes; the first ``processes`` have written their
        manifests."""
        folder = self.place / "bucket" / "runs" / run / "checkpoints"
        (folder / str(step)).mkdir(parents=True)
        for process in range(processes):
            (folder / f"{step}.manifest-0000{process}-of-00002.json").touch()

    def revision(self) -> str:
        """Return the short hash of the commit that hosts must have installed."""
        git = ["git", "-C", str(self.checkout), "rev-parse", "--short=12", "HEAD"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()

    def until_trained(self) -> None:
        """Wait until the training has started on all hosts."""
        deadline = time.monotonic() + 60
        while len(list(self.place.glob("trained.*"))) < self.workers:
            assert time.monotonic() < deadline, "the training did not start"
            time.sleep(0.05)

    def power_off(self) -> None:
        """Kill the jobs of all hosts."""
        for group in self.place.glob("hosts/*/*/llama_cpt_job/group"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(group.read_text()), signal.SIGKILL)

    def calls(self) -> list[str]:
        """Return the command lines of ``gcloud`` in order, without those that only query."""
        file = self.place / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        calls = [re.sub(r"^ssh bash \S*(?:install|job)\.sh", "host", line) for line in lines]
        return [line for line in calls if line != "host state"]

    def verbs(self) -> list[str]:
        """Return the verb of each of ``calls``; for a command on hosts, the action of that
        command."""
        words = [line.split() for line in self.calls()]
        known = {"start": "start", "stop": "stop"}
        return [known.get(word[1], "install") if word[0] == "host" else word[0] for word in words]

    def billed(self) -> bool:
        """Return whether a queued resource or a node still exists."""
        return (self.place / "request").exists() or (self.place / "hosts").exists()

    def processes(self) -> list[str]:
        """Return the command lines of running processes that mention this cloud's folder."""
        found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
        return [line for line in found.splitlines() if str(self.place) in line]


def make_checkout(place: Path) -> Path:
    """Create a Git repository with the current launch scripts in one commit and return its path."""
    (place / "configs" / "llama3").mkdir(parents=True)
    (place / "configs" / "llama3" / "cpt_1b.py").touch()
    shutil.copytree(ROOT / "launch", place / "launch")
    git = ["git", "-C", str(place), "-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    return place


def make_cloud(place: Path, checkout: Path, commands: Sequence[str] = ("gcloud", "xpk")) -> Cloud:
    """Create a cloud without TPUs, with fakes of ``commands`` and of the programs of a host on
    PATH."""
    for folder in ("bin", "plan", "bucket"):
        (place / folder).mkdir()
    for command in (*commands, *OF_HOSTS):
        (place / "bin" / command).symlink_to(ROOT / "tests" / "launch" / "fake_cloud.sh")
    return Cloud(place, checkout)
