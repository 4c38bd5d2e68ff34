"""How a run ends: signals, and the step at which all processes obey them."""

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
"""A wish below all of ``Outcome``: to save again, after a save in the background has failed."""


class Outcome(enum.Enum):
    """How a call of ``fit`` ended; the value is the process's exit status."""

    FINISHED = 0
    PREEMPTED = errors.PREEMPTED
    """SIGTERM: saved, to be started again (the launch scripts restart on it)."""
    INTERRUPTED = errors.INTERRUPTED
    """Ctrl-C: saved."""


class StopSignals:
    """SIGTERM and SIGINT as a wish to stop after the step under way; a second Ctrl-C is obeyed."""

    def __init__(self) -> None:
        self.outcome = Outcome.FINISHED

    def __enter__(self) -> "StopSignals":
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.outcome is Outcome.INTERRUPTED:
            raise KeyboardInterrupt
        interrupted = number == signal.SIGINT
        self.outcome = Outcome.INTERRUPTED if interrupted else Outcome.PREEMPTED
        print(f"\n{signal.Signals(number).name}: saving, then leaving", file=sys.stderr)


class StopConsensus:
    """What any process wishes, as a number, known to all at the same step; the largest counts.

    With several processes that is a step after it was wished: it travels between two steps'
    collectives, so that no step waits for it.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._size = mesh.size
        self._asked: jax.Array | None = None

    def poll(self, here: int) -> int:
        """Of what all wished when they called this last; every process calls it every step."""
        if process_count() == 1:
            return here
        before, one = self._asked, np.full(1, here, np.int32)
        self._asked = self._largest(
            jax.make_array_from_callback((self._size,), self._everywhere, lambda _: one)
        )
        return 0 if before is None else int(before)

    def reset(self) -> None:
        """Forget what all wished last: it was of before what they have just done."""
        self._asked = None
