"""A folder that appears whole or not at all."""

from collections.abc import Iterator
import contextlib

from etils import epath

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.storage import check_reachable, storage_error

INCOMPLETE = ".incomplete"
"""What a local folder's name ends in until it is whole."""


def check_new(output: str) -> None:
    """Raise UserError where ``output`` holds something already, is no name, or does not answer."""
    if not output:
        raise UserError("OUTPUT is empty: name a folder.")
    check_reachable(output)
    place = epath.Path(output).expanduser()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{output} exists already; name another folder or remove it.")


@contextlib.contextmanager
def atomic_dir(output: str) -> Iterator[epath.Path]:
    """Where to write what ``output`` (local or ``gs://``) shall hold; removed after an error.

    Local folders are written under another name and renamed at the end; an object store has no
    renaming, so there the caller writes last what makes the folder valid. Raises UserError where
    ``output`` holds something already or cannot be written.
    """
    check_new(output)
    place = final = epath.Path(output).expanduser()
    try:
        if "://" not in output:
            place = final.with_name(f"{final.name}{INCOMPLETE}")
            if place.exists():
                place.rmtree()
        place.mkdir(parents=True, exist_ok=True)
        try:
            yield place
        except BaseException:
            with contextlib.suppress(OSError):
                place.rmtree()
            raise
        if place != final:
            if final.exists():
                final.rmdir()
            place.rename(final)
    except OSError as error:
        reason = error.strerror or (str(error).splitlines() or [repr(error)])[0]
        told = f"{output}: could not be written: {reason}. Nothing was kept."
        raise storage_error(error, told) from error
