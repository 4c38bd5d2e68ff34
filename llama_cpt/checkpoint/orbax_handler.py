"""The Orbax handler that writes and reads all checkpoints."""

import logging
from typing import Any

from etils import epath
import orbax.checkpoint as ocp

from llama_cpt.runtime.literal_paths import LiteralPath

_MERGED_FILES = ("manifest.ocdbt", "_METADATA", "_CHECKPOINT_METADATA")
"""Files that Orbax writes when it merges the files of all processes."""

# Orbax logs a traceback for every exception that it raises. The callers report these exceptions in
# one line, so the tracebacks are not logged.
logging.getLogger("absl").addFilter(
    lambda record: not ("orbax" in record.pathname and record.levelno >= logging.ERROR)
)


def orbax_handler() -> ocp.PyTreeCheckpointHandler:
    """Return a handler without compression that accepts folder names with glob characters."""
    # With compression, a save takes seven times as long and float weights are a tenth smaller.
    implementation = _LiteralHandler(use_compression=False)
    return ocp.PyTreeCheckpointHandler(use_compression=False, handler_impl=implementation)


def require_merged(checkpoint: epath.Path) -> None:
    """Raise FileNotFoundError if Orbax has not merged the files of all processes.

    Orbax itself only logs a warning in this case.
    """
    for name in _MERGED_FILES:
        if not (checkpoint / name).exists():
            raise FileNotFoundError(f"Orbax did not write {checkpoint / name}")


class _LiteralHandler(ocp.BasePyTreeCheckpointHandler):
    """Orbax's handler, which also accepts glob characters in the path of the checkpoint.

    Orbax finds the files of all processes with globs, so these characters are escaped.
    """

    def finalize(self, directory: epath.Path) -> None:
        """Merge the files of all processes in ``directory``."""
        super().finalize(LiteralPath(directory))

    def restore(self, directory: epath.Path, *args: Any, **named: Any) -> Any:
        """Return the arrays in the checkpoint ``directory``."""
        return super().restore(LiteralPath(directory), *args, **named)
