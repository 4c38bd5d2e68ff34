"""Connection, communication and joint exit of the processes of a command, one process per host.

Processes exchange messages through the coordination service of ``jax.distributed`` and not through
collectives, because the service has timeouts and works while a device hangs.
"""

from collections.abc import Callable, Generator
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

# JAX has no public API for its key-value store. Orbax and MaxText also use this private module.
from jax._src.distributed import global_state

from llama_cpt.runtime.errors import INTERRUPTED, PREEMPTED, UserError, exit_status, first_line
from llama_cpt.runtime.logs import set_process_index
from llama_cpt.runtime.progress import enable_progress
from llama_cpt.runtime.untrusted_text import one_line, printable

HEARTBEAT_VARIABLE = "LLAMA_CPT_HEARTBEAT_SECONDS"
"""Environment variable that sets the result of ``heartbeat_seconds``."""
WAIT_SECONDS = 600
"""Default number of seconds that ``allgather_strings`` waits for the other processes."""
WATCH_THREAD = "watch processes"
"""Name of the thread that waits for the exit of another process."""

_POLL_SECONDS = 1.0
_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_UNDETECTED = "coordinator_address should be defined"

_call_counts: dict[str, int] = {}
"""Number of exchanges that this process has made, by purpose. The number is part of the keys in the
key-value store. It is equal in all processes, because all processes make the same exchanges."""

Result = TypeVar("Result")


class LostProcessError(RuntimeError):
    """Raised if processes cannot connect or a process does not synchronize within the timeout."""


@contextlib.contextmanager
def distributed_session() -> Generator[None]:
    """Context manager for a command: connects its processes and makes all of them exit together.

    Enter the context before any device is used. If one process raises an error, all processes exit
    with the status of that error. If a process is lost, the remaining processes abort with SIGABRT.
    After SIGTERM, all processes exit with status ``PREEMPTED``. Raises UserError if the environment
    variables that describe the processes are incomplete or invalid.
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
def _end_together() -> Generator[None]:
    """Context manager that makes all other processes exit if this process exits with an error."""
    threading.Thread(target=_watch_other_processes, name=WATCH_THREAD, daemon=True).start()
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
        print(printable(traceback.format_exc()), end="", file=sys.stderr)
        # If a process is lost, a collective fails immediately, with an error that does not name the
        # lost process. Wait, because the coordination service soon aborts this process with a
        # message that names the lost process.
        time.sleep(2 * heartbeat_seconds())
        message = f"failed: {type(error).__name__}: {first_line(error)}"
        _announce_exit(exit_status(error), message)


def require_single_process(command: str) -> None:
    """Raise UserError if environment variables of JAX request several processes."""
    if os.environ.get("JAX_NUM_PROCESSES", "1") != "1":
        raise UserError(
            f"{command} runs as one process; start it once, without {', '.join(_EXPLICIT)}."
        )


def heartbeat_seconds() -> int:
    """Return the number of seconds without a heartbeat after which a process counts as lost.

    The default is 20. Raises UserError if ``HEARTBEAT_VARIABLE`` is set to anything other than a
    whole number above 0.
    """
    given = os.environ.get(HEARTBEAT_VARIABLE, "20")
    if not given.isdigit() or int(given) < 1:
        raise UserError(
            f"{HEARTBEAT_VARIABLE}={given} must be a whole number of seconds, at least 1."
        )
    return int(given)


def process_count() -> int:
    """Return the number of processes, without starting a backend as ``jax.process_count`` does."""
    return global_state.num_processes


def process_index() -> int:
    """Return the index of this process. The index of the primary process is 0."""
    return global_state.process_id


def is_primary() -> bool:
    """Return whether this process is process 0, which prints results and writes shared files."""
    return process_index() == 0


def allgather_strings(value: str, purpose: str, *, seconds: int = WAIT_SECONDS) -> list[str]:
    """Return the ``value`` of every process, ordered by process index.

    Every process must make this call with the same ``purpose``. Raises LostProcessError, which
    names the missing processes, if not all processes have made the call within ``seconds``.
    """
    if process_count() == 1:
        return [value]
    client, call = _client(), _call_counts.get(purpose, 0)
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
        # A process that has reached this call has read the values of the previous call.
        client.key_value_delete(f"gather/{purpose}/{call - 1}")
    return [gathered for _, gathered in sorted(client.key_value_dir_get(topic))]


def all_processes_agree(here: bool, purpose: str, *, seconds: int = WAIT_SECONDS) -> bool:
    """Return whether ``here`` is True in every process; every process must make this call."""
    return all(flag == "1" for flag in allgather_strings(str(int(here)), purpose, seconds=seconds))


def broadcast_from_primary(value: int, purpose: str) -> int:
    """Return the primary process's ``value`` in every process; every process must call this."""
    return int(allgather_strings(str(value), purpose)[0])


def run_on_primary(work: Callable[[], Any], purpose: str) -> Any:
    """Run ``work()`` in the primary process and return its result in all processes.

    Every process must make this call with the same ``purpose``. The result must be a JSON value.
    The other processes wait without a timeout, because ``work`` can read weights or wait for a
    person's input.
    """
    if process_count() == 1:
        return work()
    call = _call_counts[purpose] = _call_counts.get(purpose, 0) + 1
    topic = f"result/{purpose}/{call}"
    if is_primary():
        result = work()
        kv_put(topic, json.dumps(result))
        return result
    # Poll instead of waiting at a barrier, so that this process handles signals while it waits.
    while not (results := kv_get(topic)):
        time.sleep(0.05)
    return json.loads(results[0])


def primary_first(work: Callable[[], Result], purpose: str) -> Result:
    """Run ``work()`` in the primary process, then in all other processes, and return its result.

    The other processes can therefore read files that the primary process wrote.
    """
    done: list[Result] = []
    run_on_primary(lambda: done.append(work()), purpose)
    return done[0] if done else work()


def kv_put(topic: str, value: str) -> None:
    """Publish ``value`` as this process's value of ``topic``, and replace the previous value."""
    _client().key_value_set(f"{topic}/{process_index()}", value, allow_overwrite=True)


def kv_get(topic: str) -> dict[int, str]:
    """Return the published values of ``topic`` by the index of the publishing process."""
    entries = _client().key_value_dir_get(topic)
    return {int(key.rsplit("/", 1)[1]): value for key, value in entries}


def _client() -> Any:
    """Return the client of the coordination service; valid only with several processes."""
    assert global_state.client is not None, "jax.distributed has not been initialized"
    return global_state.client


def process_label(process: int) -> str:
    """Return the index and host name of a process for messages: ``process 1 (host-1)``."""
    return f"process {process} ({kv_get('host').get(process, 'host unknown')})"


def _connect() -> None:
    """Start ``jax.distributed`` if the environment or the TPU's metadata lists several hosts."""
    settings = _explicit_settings()
    if not settings and not on_tpu_host():
        return
    # The timeout is short: if it passes, all processes restart and try to connect again.
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
        # Neither the metadata of Compute Engine nor the environment variables of GKE list other
        # hosts, so the command runs as a single process.
        if settings or _UNDETECTED not in str(error):
            raise
        return
    except RuntimeError as error:  # Also raised for a host name that cannot be resolved yet.
        reason = first_line(error)
        raise LostProcessError(
            f"not all processes connected within {seconds} s: {reason}"
        ) from error
    set_process_index(process_index())
    enable_progress(is_primary())
    kv_put("host", socket.gethostname())


def _explicit_settings() -> dict[str, Any]:
    """Return arguments of ``jax.distributed.initialize`` from environment variables, or {}.

    Raises UserError if the variables are incomplete or invalid, and LostProcessError if the
    coordinator's port is in use on this host.
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
    """Raise LostProcessError if the port is in use; JAX would crash without an error message."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise LostProcessError(
            f"port {port} of JAX_COORDINATOR_ADDRESS cannot be opened ({error.strerror}): another "
            "run is using it or has not exited yet."
        ) from error


def on_tpu_host() -> bool:
    """Return whether this host has TPU chips that JAX can use, without starting a backend."""
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    # JAX adds its options to the class at run time.
    platforms = jax.config.jax_platforms or "tpu"  # pyright: ignore[reportAttributeAccessIssue]
    return bool(chips) and "tpu" in platforms and find_spec("libtpu") is not None


def _stop(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(PREEMPTED)


def _watch_other_processes() -> None:
    """Exit with the status of another process as soon as that process announces its exit."""
    # If the coordination service is lost, the client of jax.distributed aborts this process.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        while global_state.client is not None:
            for process, notice in kv_get("exits").items():
                status, message = notice.split(" ", 1)
                ended = f"{process_label(process)} has ended: {message}"
                print(one_line(ended), file=sys.stderr)
                _end(int(status))
            time.sleep(_POLL_SECONDS)


def end_processes(status: int, message: str) -> NoReturn:
    """Print ``message`` and end all processes at once, without waiting for work in progress."""
    try:
        if process_count() > 1:
            _announce_exit(status, message)
        print(one_line(message), file=sys.stderr, flush=True)
        sys.stdout.flush()
    finally:
        # The output can be a pipe whose reader has ended.
        os._exit(status)


def _announce_exit(status: int, message: str) -> NoReturn:
    """Announce the exit of this process and exit without waiting at JAX's shutdown barrier."""
    with contextlib.suppress(OSError):
        print(one_line(message), file=sys.stderr)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        kv_put("exits", f"{status} {message}")
    _end(status)


def _end(status: int) -> NoReturn:
    # The output can be a pipe whose reader has ended.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    if is_primary():
        # The coordination service ends with this process; the others must read the message first.
        time.sleep(3 * _POLL_SECONDS)
    os._exit(status)


def _abort(error: Exception) -> NoReturn:
    """Abort with SIGABRT, as the client of ``jax.distributed`` does when a process is lost."""
    print(one_line(f"error: {error}"), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os.abort()
