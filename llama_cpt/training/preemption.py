"""Watching for Compute Engine's preemption notice, which precedes any signal."""

from http.client import HTTPException
import os
import signal
import sys
import threading
import urllib.error
import urllib.request

from llama_cpt.runtime.distributed import on_tpu_host

METADATA_HOST = "GCE_METADATA_HOST"
"""The environment variable with the metadata server's host, as in Google's own libraries."""
_URL = "http://{}/computeMetadata/v1/instance/preempted?wait_for_change=true&timeout_sec={}"
# With wait_for_change the server answers when the value changes, or after this time.
_ANSWER_SECONDS = 60
_RETRY_SECONDS = 5.0


class PreemptionWatcher:
    """Context manager that turns a preemption notice into a SIGTERM to this process.

    It polls the metadata server on TPU hosts and if ``GCE_METADATA_HOST`` is set, and sends no
    request otherwise.
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
        # The thread is a daemon and not joined: its request may stay open for a minute.
        self._closed.set()

    def _watch(self) -> None:
        etag = "0"  # The first request returns at once; later ones wait until the value changes.
        while not self._closed.is_set():
            url = f"{_URL.format(self._host, _ANSWER_SECONDS)}&last_etag={etag}"
            request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
            try:
                with self._opener.open(request, timeout=_ANSWER_SECONDS + 10) as answer:
                    preempted = answer.read().strip() == b"TRUE"
                    etag = answer.headers.get("ETag", "0")
            except (OSError, HTTPException) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code == 404:
                    # GKE's server does not have this entry; GKE sends SIGTERM early enough itself.
                    return
                self._closed.wait(_RETRY_SECONDS)
                continue
            if preempted and not self._closed.is_set():
                print("\npreemption notice: this machine will be reclaimed", file=sys.stderr)
                # Python runs the handler of StopSignals in the main thread, between two steps.
                os.kill(os.getpid(), signal.SIGTERM)
                return
            # A server that ignores wait_for_change answers at once; do not flood it.
            self._closed.wait(1.0)
