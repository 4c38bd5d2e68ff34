"""Atomic creation of a folder: readers see either the complete folder or no folder."""

from collections.abc import Generator
import contextlib

from etils import epath

from llama_cpt.runtime.errors import UserError, first_line
from llama_cpt.runtime.storage import check_reachable, storage_error

INCOMPLETE = ".incomplete"
"""Suffix of the name under which a local folder is written before it is renamed."""


def check_new(output: str) -> None:
    """Raise UserError if ``output`` is "", a file, or a folder that is not empty."""
    if not output:
        raise UserError("OUTPUT is empty; it must be the path of a folder.")
    check_reachable(output)
    folder = epath.Path(output).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{output} already exists; name another folder or remove it.")


@contextlib.contextmanager
def atomic_dir(output: str) -> Generator[epath.Path]:
    """Context manager that yields a new folder and publishes it as ``output`` if no error occurs.

    ``output`` is local or ``gs://``. A local folder has a temporary name until the context ends. An
    object store cannot rename folders, so on ``gs://`` the yielded folder is ``output`` itself. The
    caller must therefore write the file that marks the folder as complete after all other files.
    After an error, the folder is removed. Raises UserError if ``output`` is not empty or cannot be
    written.
    """
    check_new(output)
    folder = final = epath.Path(output).expanduser()
    try:
        if "://" not in output:
            folder = final.with_name(f"{final.name}{INCOMPLETE}")
            if folder.exists():
                folder.rmtree()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield folder
        except BaseException:
            with contextlib.suppress(OSError):
                folder.rmtree()
            raise
        if folder != final:
            if final.exists():
                final.rmdir()
            folder.rename(final)
    except OSError as error:
        reason = error.strerror or first_line(error)
        message = f"{output}: cannot be written ({reason}); the incomplete folder was removed."
        raise storage_error(error, message) from error
