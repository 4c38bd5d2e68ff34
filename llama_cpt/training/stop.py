"""Stopping a run: signals, and agreement of all processes on the step at which to stop."""

import enum
import signal
import sys
from types import FrameType

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from llama_cpt.runtime import errors
from llama_cpt.runtime.distributed import process_count

SAVE_FAILED = 1
"""The vote to save again after a background save failed; it is below every vote to stop."""


class Outcome(enum.Enum):
    """The result of ``fit``; the value is the exit status of the process."""

    FINISHED = 0
    PREEMPTED = errors.PREEMPTED
    """Stopped by SIGTERM and saved; the launch scripts restart the run."""
    INTERRUPTED = errors.INTERRUPTED
    """Stopped by Ctrl-C and saved."""


class StopSignals:
    """Context manager that records SIGTERM and SIGINT; a second Ctrl-C raises KeyboardInterrupt.

    The loop reads ``outcome`` between two steps, so a step is never interrupted and the checkpoint
    is that of a whole step.
    """

    def __init__(self) -> None:
        self.outcome = Outcome.FINISHED
        """The outcome that the last signal requests."""

    def __enter__(self) -> "StopSignals":
        self._previous = {
            number: signal.signal(number, self._record)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.outcome is Outcome.INTERRUPTED:
            raise KeyboardInterrupt
        interrupted = number == signal.SIGINT
        self.outcome = Outcome.INTERRUPTED if interrupted else Outcome.PREEMPTED
        print(f"\n{signal.Signals(number).name}: saving, then exiting", file=sys.stderr)


class StopConsensus:
    """Agreement of all processes on the largest vote that any of them cast, at the same step.

    All processes must leave the loop after the same step: one that stopped alone would leave the
    others waiting in the next step's collectives. With several processes, ``poll`` therefore
    returns the result of the previous call. The maximum is computed on the devices between two
    steps and read a step later, so no step waits for it.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._per_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._size = mesh.size
        self._pending: jax.Array | None = None

    def poll(self, vote: int) -> int:
        """Cast ``vote`` and return the largest vote of the previous call; 0 at the first call.

        Every process calls this at every step. A single process gets its own vote back at once.
        """
        if process_count() == 1:
            return vote
        previous, one = self._pending, np.full(1, vote, np.int32)
        self._pending = self._max(
            jax.make_array_from_callback((self._size,), self._per_device, lambda _: one)
        )
        return 0 if previous is None else int(previous)

    def reset(self) -> None:
        """Discard the votes of the last call, which the processes have just acted on."""
        self._pending = None
