"""Detection of Compute Engine's preemption notice, which arrives before any signal."""

from http.client import HTTPException
import logging
import os
import signal
import threading
import urllib.error
import urllib.request

from llama_cpt.runtime.distributed import on_tpu_host

METADATA_HOST = "GCE_METADATA_HOST"
"""Environment variable that sets the metadata server's host, as for Google's client libraries."""
_URL = "http://{}/computeMetadata/v1/instance/preempted?wait_for_change=true&timeout_sec={}"
# With wait_for_change, the server answers when the value changes, or after this number of seconds.
_ANSWER_SECONDS = 60
_RETRY_SECONDS = 5.0

logger = logging.getLogger(__name__)


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
