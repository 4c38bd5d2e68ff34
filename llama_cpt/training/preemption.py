"""Compute Engine's notice that it takes this machine back, which comes before any signal."""

from http.client import HTTPException
import os
import signal
import sys
import threading
import urllib.error
import urllib.request

from llama_cpt.runtime.distributed import on_tpu_host

METADATA_HOST = "GCE_METADATA_HOST"
"""Names another metadata server, as for Google's own libraries."""
_URL = "http://{}/computeMetadata/v1/instance/preempted?wait_for_change=true&timeout_sec={}"
# An answer comes at a change, or after so long.
_ANSWER_SECONDS = 60
_RETRY_SECONDS = 5.0


class PreemptionWatcher:
    """While it is open, such a notice is a SIGTERM of this process to itself.

    Asks where TPU chips are here, or ``GCE_METADATA_HOST`` is set; nobody on the network otherwise.
    """

    def __init__(self) -> None:
        self._over = threading.Event()
        self._host = os.environ.get(METADATA_HOST, "metadata.google.internal")
        # Metadata never lie behind a proxy.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> "PreemptionWatcher":
        if METADATA_HOST in os.environ or on_tpu_host():
            threading.Thread(target=self._watch, name="preemption", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        # Its question may be open for a minute: nobody waits for that.
        self._over.set()

    def _watch(self) -> None:
        known = "0"
        while not self._over.is_set():
            url = f"{_URL.format(self._host, _ANSWER_SECONDS)}&last_etag={known}"
            asked = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
            try:
                with self._opener.open(asked, timeout=_ANSWER_SECONDS + 10) as answer:
                    taken = answer.read().strip() == b"TRUE"
                    known = answer.headers.get("ETag", "0")
            except (OSError, HTTPException) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code == 404:
                    return  # A server that does not tell of it, as on GKE, which signals in time.
                self._over.wait(_RETRY_SECONDS)
                continue
            if taken and not self._over.is_set():
                print("\npreemption notice: this machine is taken back", file=sys.stderr)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            # Whoever answers at once is not asked without pause.
            self._over.wait(1.0)
