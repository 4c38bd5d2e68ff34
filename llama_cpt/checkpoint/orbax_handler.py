"""The Orbax handler with which all checkpoints are written and read."""

import logging
from typing import Any

from etils import epath
import orbax.checkpoint as ocp

from llama_cpt.runtime.literal_paths import LiteralPath

_MERGED_FILES = ("manifest.ocdbt", "_METADATA", "_CHECKPOINT_METADATA")
"""Files that Orbax writes when it merges the parts of all processes."""

# Orbax logs a traceback for every exception that it raises. Here each becomes a one-line error.
logging.getLogger("absl").addFilter(
    lambda record: not ("orbax" in record.pathname and record.levelno >= logging.ERROR)
)


def orbax_handler() -> ocp.PyTreeCheckpointHandler:
    """Return the handler, which accepts a folder of any name."""
    # Compression takes seven times as long and saves a tenth of the size of float weights.
    implementation = _LiteralHandler(use_compression=False)
    return ocp.PyTreeCheckpointHandler(use_compression=False, handler_impl=implementation)


def require_merged(checkpoint: epath.Path) -> None:
    """Raise FileNotFoundError if Orbax skipped the merge, for which it prints only a warning."""
    for name in _MERGED_FILES:
        if not (checkpoint / name).exists():
            raise FileNotFoundError(f"Orbax did not write {checkpoint / name}")


class _LiteralHandler(ocp.BasePyTreeCheckpointHandler):
    """Orbax's handler with literal paths: it globs for the files of all processes."""

    def finalize(self, directory: epath.Path) -> None:
        """Merge the parts of all processes."""
        super().finalize(LiteralPath(directory))

    def restore(self, directory: epath.Path, *args: Any, **named: Any) -> Any:
        """Read arrays."""
        return super().restore(LiteralPath(directory), *args, **named)
