"""Writing a folder so that it appears complete or not at all."""

from collections.abc import Iterator
import contextlib

from etils import epath

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.storage import check_reachable, storage_error

INCOMPLETE = ".incomplete"
"""Suffix of a local folder's name until it is complete."""


def check_new(output: str) -> None:
    """Raise UserError if ``output`` is empty, unreachable, a file, or a folder with entries."""
    if not output:
        raise UserError("OUTPUT is empty; name a folder.")
    check_reachable(output)
    folder = epath.Path(output).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{output} already exists; name another folder or remove it.")


@contextlib.contextmanager
def atomic_dir(output: str) -> Iterator[epath.Path]:
    """Context manager that yields a folder to write, which becomes ``output`` (local or ``gs://``).

    A local folder is written under another name and renamed at the end. An object store cannot
    rename, so that there the caller must write the file that makes the folder valid last. After an
    error the folder is removed. Raises UserError if ``output`` has entries or cannot be written.
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
        reason = error.strerror or (str(error).splitlines() or [repr(error)])[0]
        message = f"{output}: cannot be written ({reason}); the incomplete folder was removed."
        raise storage_error(error, message) from error
