"""Resolution of a model's name to a folder. Models on the Hugging Face hub are downloaded."""

from collections.abc import Generator
import contextlib
import difflib
import re

from etils import epath
import huggingface_hub
from huggingface_hub import errors

from llama_cpt.runtime.errors import UserError, first_line
from llama_cpt.runtime.retry import is_permanent
from llama_cpt.runtime.storage import UnreachableError, check_reachable

COMPANION_FILES = ("*.json", "tokenizer.model", "*.jinja", "LICENSE*", "USE_POLICY*", "NOTICE*")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# Errors of a broken connection or a full disk. The bases of HfHubHTTPError include the error class
# of the HTTP library.
DOWNLOAD_ERRORS: tuple[type[Exception], ...] = (
    *errors.HfHubHTTPError.__bases__,
    OSError,
    ValueError,
)


def resolve(source: str, *, weights: bool = True) -> str:
    """Return the folder or URL that holds the model ``source``.

    ``source`` is a local folder, a ``gs://`` URL or a name on the hub. A model on the hub is
    downloaded, and an interrupted download is resumed. With ``weights=False``, only the tokenizer,
    config and license are downloaded. Raises UserError if the model does not exist or access is
    denied, and UnreachableError if the storage or the hub cannot be reached.
    """
    check_reachable(source)
    path = epath.Path(source).expanduser()
    if path.is_dir():
        return str(path)
    if not HUB_NAME.fullmatch(source):
        raise UserError(f"{source}: no such folder.")
    return _download(source, [*COMPANION_FILES, *(["*.safetensors"] if weights else [])])


@contextlib.contextmanager
def hub_errors(name: str, remedy: str) -> Generator[None]:
    """Context manager that replaces an error of a download from the hub by an error on one line.

    ``name`` is the name of a model, or of a data set with the prefix ``datasets/``. ``remedy`` is
    the last sentence of the message if a download fails. Raises UnreachableError if a later attempt
    can succeed, and otherwise UserError. A UserError is not changed.
    """
    page = f"https://huggingface.co/{name}"
    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError:
        raise UserError(
            f"{name} is gated: accept its license at {page}, then run `hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{name}: no such folder, and not found on the hub ({page}); if it is private on the "
            "hub, run `hf auth login`."
        ) from None
    except errors.LocalEntryNotFoundError:
        _raise_if_mistyped(name)
        raise UnreachableError(
            f"{name}: no such folder here, and the hub cannot be reached; check the network, or "
            "name a folder that holds the files."
        ) from None
    except DOWNLOAD_ERRORS as error:
        kind = UnreachableError if _is_transient(error) else UserError
        raise kind(f"{name}: the download failed: {first_line(error)}. {remedy}") from None


def _raise_if_mistyped(name: str) -> None:
    """Raise UserError if ``name`` is probably a wrong path: its first part is a local folder."""
    parent, _, last = name.partition("/")
    if epath.Path(parent).is_dir():
        folders = sorted(path.name for path in epath.Path(parent).iterdir() if path.is_dir())
        similar = difflib.get_close_matches(last, folders, n=1)
        remedy = f"did you mean {parent}/{similar[0]}?" if similar else "correct the path."
        raise UserError(f"{name}: no such folder, and the hub cannot be reached; {remedy}")


def _download(name: str, patterns: list[str]) -> str:
    with hub_errors(name, "Run the command again to resume the download."):
        return huggingface_hub.snapshot_download(name, allow_patterns=patterns)


def _is_transient(error: Exception) -> bool:
    """Return whether the same download can succeed at a later attempt."""
    if (response := getattr(error, "response", None)) is not None:
        return response.status_code in (408, 429) or response.status_code >= 500
    return not isinstance(error, ValueError) and not is_permanent(error)
