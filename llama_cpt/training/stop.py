"""Stop signals, preemption notices, and the agreement of all processes on the last step."""

import enum
from http.client import HTTPException
import logging
import os
import signal
import threading
from types import FrameType
from typing import Any
import urllib.error
import urllib.request

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from llama_cpt.runtime import errors
from llama_cpt.runtime.distributed import on_tpu_host, process_count

logger = logging.getLogger(__name__)

SAVE_FAILED = 1
"""Vote to save again after a background save failed. It is smaller than every vote to stop."""
METADATA_HOST = "GCE_METADATA_HOST"
"""Environment variable that sets the metadata server's host, as for Google's client libraries."""
_URL = "http://{}/computeMetadata/v1/instance/preempted?wait_for_change=true&timeout_sec={}"
# With wait_for_change, the server answers when the value changes, or after this number of seconds.
_ANSWER_SECONDS = 60
_RETRY_SECONDS = 5.0


class Outcome(enum.Enum):
    """The result of ``fit``, with the exit status of the process as its value."""

    FINISHED = 0
    """All steps are done."""
    PREEMPTED = errors.PREEMPTED
    """The run received SIGTERM and saved a checkpoint; the launch scripts restart the run."""
    INTERRUPTED = errors.INTERRUPTED
    """The run received Ctrl-C and saved a checkpoint."""


class StopSignals:
    """Context manager that records SIGTERM and SIGINT (Ctrl-C) instead of ending the process.

    A second Ctrl-C raises KeyboardInterrupt. The training loop reads ``outcome`` between two steps,
    so every checkpoint contains the state after a whole step.
    """

    def __init__(self) -> None:
        self.outcome = Outcome.FINISHED
        """The outcome for the last received signal, or FINISHED if no signal was received."""
        self._previous: dict[int, Any] = {}

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
        logger.warning("%s: saving, then exiting", signal.Signals(number).name)


class StopConsensus:
    """A vote of all processes before each step. Every process receives the maximum vote.

    All processes must leave the training loop after the same step. If one process stopped alone,
    the other processes would wait for it in the collectives of the next step. The maximum is
    computed on the devices between two steps, and each process reads the maximum one step later, so
    that no step waits for the result.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._per_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._size = mesh.size
        self._pending: jax.Array | None = None

    def poll(self, vote: int) -> int:
        """Cast ``vote`` and return the maximum of the votes of the previous call.

        The first call returns 0. Every process must call this method once per step. If the run has
        a single process, its own ``vote`` is returned at once.
        """
        if process_count() == 1:
            return vote
        previous, one = self._pending, np.full(1, vote, np.int32)
        self._pending = self._max(
            jax.make_array_from_callback((self._size,), self._per_device, lambda _: one)
        )
        return 0 if previous is None else int(previous)

    def reset(self) -> None:
        """Discard the votes of the previous call, so that the next ``poll`` returns 0."""
        self._pending = None


class PreemptionWatcher:
    """Context manager that sends SIGTERM to this process upon a preemption notice.

    A thread polls the metadata server if the machine is a TPU host or ``GCE_METADATA_HOST`` is set.
    Otherwise no request is sent.
    """

    def __init__(self) -> None:
        self._closed = threading.Event()
        self._host = os.environ.get(METADATA_HOST, "metadata.google.internal")
        # The metadata server is link-local and never behind a proxy.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> "PreemptionWatcher":
        if METADATA_HOST in os.environ or on_tpu_host():
            threading.Thread(target=self._watch, name="preemption", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        # The thread is not joined, because its request can stay open for a minute. It is a daemon,
        # so it does not keep the process alive.
        self._closed.set()

    def _watch(self) -> None:
        # With this tag the first request returns at once. Later requests wait for a change.
        etag = "0"
        while not self._closed.is_set():
            url = f"{_URL.format(self._host, _ANSWER_SECONDS)}&last_etag={etag}"
            request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
            try:
                with self._opener.open(request, timeout=_ANSWER_SECONDS + 10) as answer:
                    preempted = answer.read().strip() == b"TRUE"
                    etag = answer.headers.get("ETag", "0")
            except (OSError, HTTPException) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code == 404:
                    # GKE's metadata server lacks this entry. GKE itself sends SIGTERM to the pod
                    # when the machine is preempted.
                    return
                self._closed.wait(_RETRY_SECONDS)
                continue
            if preempted and not self._closed.is_set():
                logger.warning("preemption notice: this machine will be reclaimed")
                # Python runs the signal handler of StopSignals in the main thread.
                os.kill(os.getpid(), signal.SIGTERM)
                return
            # Limit the rate of requests in case the server ignores wait_for_change.
            self._closed.wait(1.0)
