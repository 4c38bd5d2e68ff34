"""Continual pre-training, SFT and DPO of Llama 3 models in a new language, with JAX."""

from importlib.util import find_spec
import os
from pathlib import Path
import shlex
import sys

_REQUIRED = ("etils", "flax", "fsspec", "jax", "numpy", "optax", "orbax", "tensorboardX", "tyro")


def _require_packages() -> None:
    """Report missing packages with the command that installs them.

    Commands print one line and exit with the status of a user error. Raises ModuleNotFoundError if
    the package is imported by other code.
    """
    missing = [name for name in _REQUIRED if find_spec(name) is None]
    if not missing:
        return
    root = Path(__file__).resolve().parent.parent
    python = root / ".venv" / "bin" / "python"
    install = shlex.join([sys.executable, "-m", "pip", "install", "-e", str(root)])
    # Only the names are compared, because both files can be links to one Python.
    if python.exists() and python != Path(sys.executable).absolute():
        remedy = f"use the Python of the project's environment: {shlex.quote(str(python))}"
    else:
        remedy = f"to install them, run: {install}"
    message = f"{sys.executable} does not have the packages {', '.join(missing)}; {remedy}"
    # ``python -m`` sets sys.argv[0] to this word while it imports the parent package.
    if sys.argv[:1] == ["-m"]:
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(78)
    raise ModuleNotFoundError(message)


_require_packages()

# JAX reads these flags when the first device is used. The kernels that this flag turns off double
# the rounding error of float32 logits on a CPU, and are not faster (docs/notes/real_model.md).
_EXACT = "--xla_cpu_experimental_ynn_fusion_type="
if _EXACT not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_EXACT}".strip()

from fsspec.config import conf  # noqa: E402

# Several processes can write to one bucket, so a cached listing could lack new files.
conf.setdefault("gcs", {})["use_listings_cache"] = False
