"""Packages of the optional extras."""

from importlib.util import find_spec

from llama_cpt.runtime.errors import UserError


def require_packages(feature: str, *packages: str, extra: str) -> None:
    """Raise UserError if a package that ``feature`` needs is not installed.

    ``extra`` is the extra of this package that installs all of them.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f"{feature} needs {' and '.join(missing)}: pip install -e '.[{extra}]'.")
