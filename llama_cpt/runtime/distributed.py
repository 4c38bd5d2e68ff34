"""The processes of a command, one a host: how they meet, agree, and end together.

What they say to each other here goes over the coordination service of ``jax.distributed``, not
over the devices: it has time-outs, and works while a device hangs.
"""

from collections.abc import Callable, Iterator
import contextlib
from importlib.util import find_spec
import json
import os
from pathlib import Path
import re
import signal
import socket
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Any, NoReturn, TypeVar

import jax

# Public JAX has no key-value store; Orbax and MaxText take the client from here too.
from jax._src.distributed import global_state

from llama_cpt.runtime.errors import INTERRUPTED, PREEMPTED, UserError, exit_status
from llama_cpt.runtime.progress import enable_progress

HEARTBEAT_VARIABLE = "LLAMA_CPT_HEARTBEAT_SECONDS"
"""Environment variable: after how many silent seconds a process counts as lost; 20 unless set."""
WAIT_SECONDS = 600
"""How long processes wait for each other where none has much to do."""

_POLL_SECONDS = 1.0
_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_UNDETECTED = "coordinator_address should be defined"

_call_counts: dict[str, int] = {}
"""How often this process has said something, by purpose."""

Result = TypeVar("Result")


class LostProcessError(RuntimeError):
    """Another process did not come to where all must meet."""


@contextlib.contextmanager
def distributed_session() -> Iterator[None]:
    """Around a command, before any device is used: meet the other processes; end with them.

    An error ends all processes with the status of the one that it came to; a lost process ends
    the others by SIGABRT; SIGTERM ends all with ``PREEMPTED``. Raises UserError where the
    environment says half of what is needed.
    """
    try:
        _connect()
    except LostProcessError as error:
        _abort(error)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        if process_count() == 1:
            yield
            return
        with _end_together():
            yield
        jax.distributed.shutdown()
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _end_together() -> Iterator[None]:
    """Whatever ends this process ends the others."""
    threading.Thread(target=_watch_other_processes, name="follow the others", daemon=True).start()
    try:
        yield
    except LostProcessError as error:
        _abort(error)
    except (UserError, OSError) as error:
        _announce_exit(exit_status(error), f"error: {error}")
    except KeyboardInterrupt:
        _announce_exit(INTERRUPTED, "interrupted")
    except SystemExit as exit_:
        _announce_exit(int(exit_.code or 0), "stopped")
    except BaseException as error:
        traceback.print_exc()
        # A collective fails at once where a process is lost; who it was, the service says.
        time.sleep(2 * heartbeat_seconds())
        told = f"failed: {type(error).__name__}: {error}".splitlines()[0]
        _announce_exit(exit_status(error), told)


def require_single_process(command: str) -> None:
    """Raise UserError where the environment asks for several processes: ``command`` is one."""
    if os.environ.get("JAX_NUM_PROCESSES", "1") != "1":
        raise UserError(f"{command} is one process: start it once, without {', '.join(_EXPLICIT)}.")


def heartbeat_seconds() -> int:
    """After how many silent seconds a process counts as lost."""
    given = os.environ.get(HEARTBEAT_VARIABLE, "20")
    if not given.isdigit() or int(given) < 1:
        raise UserError(f"{HEARTBEAT_VARIABLE}={given}: a whole number of seconds, 1 or more.")
    return int(given)


def process_count() -> int:
    """Of processes; unlike ``jax.process_count()`` it starts no backend."""
    return global_state.num_processes


def process_index() -> int:
    """Of this process, from 0."""
    return global_state.process_id


def is_primary() -> bool:
    """Whether this process is the one that tells and writes."""
    return process_index() == 0


def allgather_strings(value: str, purpose: str, *, seconds: int = WAIT_SECONDS) -> list[str]:
    """What each process says, in their order; all call it with the same ``purpose``.

    Raises LostProcessError, naming those that have not come after ``seconds``.
    """
    if process_count() == 1:
        return [value]
    client, turn = global_state.client, _call_counts.get(purpose, 0)
    _call_counts[purpose] = turn + 1
    place = f"said/{purpose}/{turn}"
    client.key_value_set(f"{place}/{process_index():06}", value)
    try:
        client.wait_at_barrier(f"llama_cpt {purpose}", 1000 * seconds)
    except jax.errors.JaxRuntimeError as error:
        here = {int(key.rsplit("/", 1)[1]) for key, _ in client.key_value_dir_get(place)}
        missing = sorted(set(range(process_count())) - here)
        if not missing:
            raise
        raise LostProcessError(
            f"{purpose}: after {seconds} s still missing: {', '.join(map(process_label, missing))}"
        ) from error
    if is_primary() and turn:
        # Who has come to this turn has read the one before.
        client.key_value_delete(f"said/{purpose}/{turn - 1}")
    return [said for _, said in sorted(client.key_value_dir_get(place))]


def all_processes_agree(here: bool, purpose: str, *, seconds: int = WAIT_SECONDS) -> bool:
    """Whether ``here`` is true on every process."""
    return all(said == "1" for said in allgather_strings(str(int(here)), purpose, seconds=seconds))


def broadcast_from_primary(value: int, purpose: str) -> int:
    """The first process's ``value``."""
    return int(allgather_strings(str(value), purpose)[0])


def run_on_primary(work: Callable[[], Any], purpose: str) -> Any:
    """What ``work()`` gives, done by the first process alone and told to the others as JSON.

    They wait however long it takes: for a person, for a folder of weights.
    """
    if process_count() == 1:
        return work()
    turn = _call_counts[purpose] = _call_counts.get(purpose, 0) + 1
    topic = f"told/{purpose}/{turn}"
    if is_primary():
        result = work()
        kv_put(topic, json.dumps(result))
        return result
    # Not at a barrier: between two looks this process hears signals.
    while not (told := kv_get(topic)):
        time.sleep(0.05)
    return json.loads(told[0])


def primary_first(work: Callable[[], Result], purpose: str) -> Result:
    """``work()``, done by the first process before the others, which find what it has left."""
    done: list[Result] = []
    run_on_primary(lambda: done.append(work()), purpose)
    return done[0] if done else work()


def kv_put(topic: str, value: str) -> None:
    """Say something that others may read, in place of what was said of ``topic`` before."""
    global_state.client.key_value_set(f"{topic}/{process_index()}", value, allow_overwrite=True)


def kv_get(topic: str) -> dict[int, str]:
    """What each process has posted."""
    entries = global_state.client.key_value_dir_get(topic)
    return {int(key.rsplit("/", 1)[1]): value for key, value in entries}


def process_label(process: int) -> str:
    """A process by number and host."""
    return f"process {process} ({kv_get('host').get(process, 'host unknown')})"


def _connect() -> None:
    """Start ``jax.distributed`` as the environment says; nothing where there is one process."""
    given = {name: os.environ[name] for name in _EXPLICIT if os.environ.get(name)}
    if given and len(given) < len(_EXPLICIT):
        missing = ", ".join(name for name in _EXPLICIT if name not in given)
        raise UserError(f"{', '.join(given)} set without {missing}: set all three or none.")
    settings = {}
    if given:
        address, processes, process = (given[name] for name in _EXPLICIT)
        if not (processes.isdigit() and process.isdigit() and int(process) < int(processes)):
            raise UserError(
                f"JAX_PROCESS_ID={process} with JAX_NUM_PROCESSES={processes}: it must be a number "
                "from 0 to one less than theirs."
            )
        _, _, port = address.rpartition(":")
        if not (re.fullmatch(r".+:\d{1,5}", address) and 0 < int(port) < 65536):
            raise UserError(f"JAX_COORDINATOR_ADDRESS={address}: give HOST:PORT, as 10.0.0.2:8476.")
        if int(process) == 0:
            _check_port_free(int(port))
        settings = {
            "coordinator_address": address,
            "num_processes": int(processes),
            "process_id": int(process),
        }
    elif not on_tpu_host():
        return
    # Short: who comes later finds the others started again.
    seconds = 2 * heartbeat_seconds() + 5
    # JAX's own service takes SIGTERM for itself and knows nothing of Ctrl-C.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **settings,
            heartbeat_timeout_seconds=heartbeat_seconds(),
            initialization_timeout=seconds,
        )
    except ValueError as error:
        # Neither Compute Engine's metadata nor GKE's variables tell of other hosts.
        if given or _UNDETECTED not in str(error):
            raise
        return
    except RuntimeError as error:  # not only JAX's own: a host whose name nobody knows yet
        told = str(error).splitlines()[0]
        raise LostProcessError(f"not all had come after {seconds} s: {told}") from error
    enable_progress(is_primary())
    kv_put("host", socket.gethostname())


def _check_port_free(port: int) -> None:
    """Raise LostProcessError where something listens: JAX's service would crash without a word."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise LostProcessError(
            f"port {port} of JAX_COORDINATOR_ADDRESS cannot be had ({error.strerror}): another run "
            "has it, or one that is about to end."
        ) from error


def on_tpu_host() -> bool:
    """Whether TPU chips are here and JAX may use them; asks no backend."""
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    platforms = jax.config.jax_platforms or "tpu"
    return bool(chips) and "tpu" in platforms and find_spec("libtpu") is not None


def _stop(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(PREEMPTED)


def _watch_other_processes() -> None:
    """End this process when another has said that it ends."""
    # Without the service the client ends this process itself.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        while global_state.client is not None:
            for process, said in kv_get("left").items():
                status, told = said.split(" ", 1)
                print(f"{process_label(process)} has ended: {told}", file=sys.stderr)
                _end(int(status))
            time.sleep(_POLL_SECONDS)


def _announce_exit(status: int, told: str) -> NoReturn:
    """Tell the others and end: nobody waits for this process at an exit."""
    print(told, file=sys.stderr)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        kv_put("left", f"{status} {told}")
    _end(status)


def _end(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    if is_primary():
        # The service ends with this process: the others must have heard by then.
        time.sleep(3 * _POLL_SECONDS)
    os._exit(status)


def _abort(error: Exception) -> NoReturn:
    """End as a process does that the service has told of a lost one."""
    print(f"error: {error}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os.abort()
