"""Processes of a multi-host command, one per host: connection, agreement and common exit.

Messages between processes use the coordination service of ``jax.distributed``, not the devices,
because it has timeouts and works while a device hangs.
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
"""Environment variable with the seconds without a heartbeat after which a process is lost."""
WAIT_SECONDS = 600
"""Time that processes wait for each other at points without long work."""

_POLL_SECONDS = 1.0
_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_UNDETECTED = "coordinator_address should be defined"

_call_counts: dict[str, int] = {}
"""Number of this process's calls by purpose; all processes count alike, so that keys match."""

Result = TypeVar("Result")


class LostProcessError(RuntimeError):
    """An error for another process that did not reach a point where all processes wait."""


@contextlib.contextmanager
def distributed_session() -> Iterator[None]:
    """Context manager for a command: connects to the other processes, and exits together with them.

    It must be entered before any device is used. An error ends all processes with the status of the
    process in which it was raised; a lost process ends the others by SIGABRT; SIGTERM ends all with
    ``PREEMPTED``. Raises UserError if the environment is incomplete.
    """
    try:
        _connect()
    except LostProcessError as error:
        _abort(error)
    former_handler = signal.signal(signal.SIGTERM, _stop)
    try:
        if process_count() == 1:
            yield
            return
        with _end_together():
            yield
        jax.distributed.shutdown()
    finally:
        signal.signal(signal.SIGTERM, former_handler)


@contextlib.contextmanager
def _end_together() -> Iterator[None]:
    """Context manager that ends the other processes when this one ends."""
    threading.Thread(target=_watch_other_processes, name="watch processes", daemon=True).start()
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
        # If a process is lost, a collective fails at once, but only the service knows which process
        # it is and ends the others with that message. Wait, so that its message comes first.
        time.sleep(2 * heartbeat_seconds())
        message = f"failed: {type(error).__name__}: {error}".splitlines()[0]
        _announce_exit(exit_status(error), message)


def require_single_process(command: str) -> None:
    """Raise UserError if the environment requests several processes for ``command``."""
    if os.environ.get("JAX_NUM_PROCESSES", "1") != "1":
        raise UserError(
            f"{command} runs as one process; start it once, without {', '.join(_EXPLICIT)}."
        )


def heartbeat_seconds() -> int:
    """Return the seconds without a heartbeat after which a process is lost; 20 by default."""
    given = os.environ.get(HEARTBEAT_VARIABLE, "20")
    if not given.isdigit() or int(given) < 1:
        raise UserError(
            f"{HEARTBEAT_VARIABLE}={given} must be a whole number of seconds, at least 1."
        )
    return int(given)


def process_count() -> int:
    """Return the number of processes; unlike ``jax.process_count()``, it starts no backend."""
    return global_state.num_processes


def process_index() -> int:
    """Return the index of this process, from 0."""
    return global_state.process_id


def is_primary() -> bool:
    """Return whether this process is the one that prints and writes."""
    return process_index() == 0


def allgather_strings(value: str, purpose: str, *, seconds: int = WAIT_SECONDS) -> list[str]:
    """Return the ``value`` of every process, by process index; all call it with one ``purpose``.

    Raises LostProcessError, naming the processes that have not called it after ``seconds``.
    """
    if process_count() == 1:
        return [value]
    client, call = global_state.client, _call_counts.get(purpose, 0)
    _call_counts[purpose] = call + 1
    topic = f"gather/{purpose}/{call}"
    client.key_value_set(f"{topic}/{process_index():06}", value)
    try:
        client.wait_at_barrier(f"llama_cpt {purpose}", 1000 * seconds)
    except jax.errors.JaxRuntimeError as error:
        arrived = {int(key.rsplit("/", 1)[1]) for key, _ in client.key_value_dir_get(topic)}
        missing = sorted(set(range(process_count())) - arrived)
        if not missing:
            raise
        raise LostProcessError(
            f"{purpose}: after {seconds} s still missing: {', '.join(map(process_label, missing))}"
        ) from error
    if is_primary() and call:
        # A process that has reached this call has read the values of the one before.
        client.key_value_delete(f"gather/{purpose}/{call - 1}")
    return [gathered for _, gathered in sorted(client.key_value_dir_get(topic))]


def all_processes_agree(here: bool, purpose: str, *, seconds: int = WAIT_SECONDS) -> bool:
    """Return whether ``here`` is true in every process."""
    return all(flag == "1" for flag in allgather_strings(str(int(here)), purpose, seconds=seconds))


def broadcast_from_primary(value: int, purpose: str) -> int:
    """Return the ``value`` of the primary process."""
    return int(allgather_strings(str(value), purpose)[0])


def run_on_primary(work: Callable[[], Any], purpose: str) -> Any:
    """Return the result of ``work()``, run by the primary process only and sent as JSON.

    The other processes wait without a timeout, because the work may read weights or ask a person.
    """
    if process_count() == 1:
        return work()
    call = _call_counts[purpose] = _call_counts.get(purpose, 0) + 1
    topic = f"result/{purpose}/{call}"
    if is_primary():
        result = work()
        kv_put(topic, json.dumps(result))
        return result
    # Polled and not a barrier, so that this process handles signals while it waits.
    while not (results := kv_get(topic)):
        time.sleep(0.05)
    return json.loads(results[0])


def primary_first(work: Callable[[], Result], purpose: str) -> Result:
    """Run ``work()`` in the primary process, then in the others, which find its files."""
    done: list[Result] = []
    run_on_primary(lambda: done.append(work()), purpose)
    return done[0] if done else work()


def kv_put(topic: str, value: str) -> None:
    """Publish this process's value of ``topic``, replacing the former one."""
    global_state.client.key_value_set(f"{topic}/{process_index()}", value, allow_overwrite=True)


def kv_get(topic: str) -> dict[int, str]:
    """Return the values of ``topic`` by process index, of the processes that published one."""
    entries = global_state.client.key_value_dir_get(topic)
    return {int(key.rsplit("/", 1)[1]): value for key, value in entries}


def process_label(process: int) -> str:
    """Return the index and host name of a process, for messages."""
    return f"process {process} ({kv_get('host').get(process, 'host unknown')})"


def _connect() -> None:
    """Start ``jax.distributed`` from the environment; do nothing for a single process."""
    settings = _explicit_settings()
    if not settings and not on_tpu_host():
        return
    # A short timeout: a process that comes later finds the others restarted.
    seconds = 2 * heartbeat_seconds() + 5
    # JAX's preemption service would replace the SIGTERM handler, and does not handle Ctrl-C.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **settings,
            heartbeat_timeout_seconds=heartbeat_seconds(),
            initialization_timeout=seconds,
        )
    except ValueError as error:
        # Neither the metadata of Compute Engine nor the variables of GKE name other hosts, so that
        # this is a single process.
        if settings or _UNDETECTED not in str(error):
            raise
        return
    except RuntimeError as error:  # Also raised for a host name that cannot be resolved yet.
        reason = str(error).splitlines()[0]
        raise LostProcessError(
            f"not all processes connected within {seconds} s: {reason}"
        ) from error
    enable_progress(is_primary())
    kv_put("host", socket.gethostname())


def _explicit_settings() -> dict[str, Any]:
    """Return the arguments of ``jax.distributed`` in the environment, validated; none if unset.

    Raises UserError if they are incomplete or invalid, and LostProcessError if the port is taken.
    """
    given = {name: os.environ[name] for name in _EXPLICIT if os.environ.get(name)}
    if given and len(given) < len(_EXPLICIT):
        missing = ", ".join(name for name in _EXPLICIT if name not in given)
        raise UserError(f"{', '.join(given)} set without {missing}; set all three or none.")
    if not given:
        return {}
    address, processes, process = (given[name] for name in _EXPLICIT)
    if not (processes.isdigit() and process.isdigit() and int(process) < int(processes)):
        raise UserError(
            f"JAX_PROCESS_ID={process} with JAX_NUM_PROCESSES={processes}: the ID must be a "
            "number from 0 to the number of processes minus 1."
        )
    _, _, port = address.rpartition(":")
    if not (re.fullmatch(r".+:\d{1,5}", address) and 0 < int(port) < 65536):
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS={address} must be HOST:PORT, such as 10.0.0.2:8476."
        )
    if int(process) == 0:
        _check_port_free(int(port))
    return {
        "coordinator_address": address,
        "num_processes": int(processes),
        "process_id": int(process),
    }


def _check_port_free(port: int) -> None:
    """Raise LostProcessError if the port is taken; JAX's service would crash without a message."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise LostProcessError(
            f"port {port} of JAX_COORDINATOR_ADDRESS cannot be opened ({error.strerror}): another "
            "run uses it, or one that is ending."
        ) from error


def on_tpu_host() -> bool:
    """Return whether this host has TPU chips that JAX may use, without starting a backend."""
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    platforms = jax.config.jax_platforms or "tpu"
    return bool(chips) and "tpu" in platforms and find_spec("libtpu") is not None


def _stop(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(PREEMPTED)


def _watch_other_processes() -> None:
    """End this process when another one has announced its exit."""
    # If the service is lost, the client of jax.distributed itself ends this process.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        while global_state.client is not None:
            for process, notice in kv_get("exits").items():
                status, message = notice.split(" ", 1)
                print(f"{process_label(process)} has ended: {message}", file=sys.stderr)
                _end(int(status))
            time.sleep(_POLL_SECONDS)


def _announce_exit(status: int, message: str) -> NoReturn:
    """Publish the exit of this process and end it without JAX's barrier at exit."""
    print(message, file=sys.stderr)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        kv_put("exits", f"{status} {message}")
    _end(status)


def _end(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    if is_primary():
        # The service ends with this process; the others need time to read the announcement.
        time.sleep(3 * _POLL_SECONDS)
    os._exit(status)


def _abort(error: Exception) -> NoReturn:
    """End this process by SIGABRT, as the client of ``jax.distributed`` does for a lost process."""
    print(f"error: {error}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os.abort()
