"""Helpers that run a command as several processes on this machine, on CPU devices."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time

from llama_cpt.config.loading import save_config
from llama_cpt.config.schema import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
DEVICES = 4
HEARTBEAT_SECONDS = 10
RUN_SECONDS = 1800.0
"""Maximum seconds of a run, even on a busy machine."""
RESTARTS = {75, -signal.SIGABRT}
"""Exit statuses on which the launch scripts restart a run."""
SLOW_STEPS = """
import time
from llama_cpt.training import attempt
rate = attempt.learning_rate
attempt.learning_rate = lambda *arguments: (time.sleep(0.5), rate(*arguments))[1]
"""
"""Code for ``program`` that slows the steps, so that a signal arrives before the run ends."""


@dataclass(frozen=True)
class Launched:
    """The processes of one command and their logs."""

    processes: list[subprocess.Popen]
    logs: list[Path]

    def log(self) -> str:
        """Return the output of all processes of this command and of earlier commands in the
        folder."""
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in self.logs)

    def ended(self, seconds: float = RUN_SECONDS) -> list[int]:
        """Wait for all processes and return their exit statuses.

        Raises AssertionError if a process still runs after ``seconds``.
        """
        until = time.monotonic() + seconds
        try:
            return [p.wait(max(until - time.monotonic(), 0.1)) for p in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s\n{self.log()}") from None
        finally:
            for process in self.processes:
                process.kill()
                process.wait()

    def reach(self, holds: Callable[[], bool]) -> bool:
        """Wait until ``holds()`` is true or a process exits; return whether it became true
        first."""
        until = time.monotonic() + RUN_SECONDS
        while not holds():
            if any(process.poll() is not None for process in self.processes):
                return False
            if time.monotonic() > until:
                self.ended(0.1)
            time.sleep(0.002)
        return True


def running(start: Callable[[], Launched], holds: Callable[[], bool]) -> Launched:
    """Start processes and return them once ``holds()`` is true; retry if a process was lost."""
    for _ in range(4):
        launched = start()
        if launched.reach(holds):
            return launched
        assert set(launched.ended()) <= RESTARTS, launched.log()
    raise AssertionError(launched.log())


def ended(start: Callable[[], Launched]) -> Launched:
    """Start processes and return them after their exit; restart them on a status in RESTARTS."""
    for _ in range(4):
        launched = start()
        if not set(launched.ended()) <= RESTARTS:
            return launched
    raise AssertionError(launched.log())


def launch(
    arguments: Sequence[str],
    folder: Path,
    count: int,
    program: str = "",
    *,
    devices: int = DEVICES,
) -> Launched:
    """Start ``python -m arguments`` as ``count`` processes that share ``devices``.

    Process K writes its output to ``folder/log-K``. Each process executes the Python code
    ``program`` before the command.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    source = (
        # tensorboardX imports torch if it finds it, which takes seconds per start.
        "import runpy, sys\nsys.modules['torch'] = None\nimport tensorboardX\n"
        "del sys.modules['torch']\n"
        f"{program}\nsys.argv = sys.argv[1:]\n"
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    )
    shared = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // count}"
        " --xla_cpu_multi_thread_eigen=false",
        "JAX_PLATFORMS": "cpu",
        "LLAMA_CPT_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
        # Without optimizations, for the time: each process compiles all programs of its own.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1"),
    }
    if count > 1:
        shared |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
        # No compilation cache: only the first process writes it, and would then wait for the
        # others' compilation, for which Gloo allows 30 seconds.
        shared |= {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    logs = [folder / f"log-{number}" for number in range(count)]
    processes = []
    for number, log in enumerate(logs):
        environment = shared | ({"JAX_PROCESS_ID": str(number)} if count > 1 else {})
        with log.open("ab") as output:
            command = [sys.executable, "-c", source, *arguments]
            processes.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
            )
    return Launched(processes, logs)


def train(config: TrainConfig, count: int, program: str = "") -> Launched:
    """Start ``python -m llama_cpt.train`` with config and logs in the output's parent folder."""
    folder = Path(config.output).parent
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    save_config(config, path)
    return launch(["llama_cpt.train", str(path)], folder, count, program)


def run_to_end(config: TrainConfig, count: int, program: str = "") -> Launched:
    """Train with ``count`` processes to the end and check that all of them succeed."""
    launched = ended(lambda: train(config, count, program))
    assert set(launched.ended()) == {0}, launched.log()
    return launched


def lines_written(config: TrainConfig) -> int:
    """Return the current number of lines in the run's ``metrics.jsonl``."""
    metrics = Path(config.output) / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0
