"""Eight fake CPU devices, strict ranks, shapes that are checked, and where the real data lies."""

from collections.abc import Callable
from functools import partial
import os
from pathlib import Path
import shutil
import tempfile
from typing import Any

# The tests run two at a time: more threads wait for each other, some of them busily.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false"
)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["JAX_PLATFORMS"] = "cpu"
# The client of gs://, as it is imported: no account, and no question to each bucket, by another
# protocol than ``storage_server`` speaks, whether it has folders.
os.environ["FSSPEC_GCS_TOKEN"] = "anon"
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"


def shared_cache() -> tuple[str, bool]:
    """Return the folder of compiled programs, and whether this process made it.

    All workers, and the commands that tests start, share one: LLAMA_CPT_TEST_CACHE, which keeps
    it, or a new one for each run of pytest.
    """
    made = "LLAMA_CPT_TEST_CACHE" not in os.environ
    if made:
        os.environ["LLAMA_CPT_TEST_CACHE"] = tempfile.mkdtemp(prefix="llama_cpt_compiled_")
    folder = os.environ["LLAMA_CPT_TEST_CACHE"]
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    return folder, made


CACHE, MADE_CACHE = shared_cache()

import hypothesis  # noqa: E402
import jax  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache as jax_cache  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# A lowered program's text names no file and no line: it is the same from any checkout.
jax.config.update("jax_traceback_in_locations_limit", 0)
# The same examples each time: what failed once fails again.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("same")

ROOT = Path(__file__).resolve().parents[1]
# A check costs a small function many times its own work: where no shapes are, none is made.
SHAPED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("llama_cpt", "pallas_kernels")
    for path in (ROOT / package).rglob("*.py")
    if "jaxtyping" in path.read_text("utf-8")
]
jaxtyping.install_import_hook(SHAPED, "beartype.beartype")

from llama_cpt.planning import compiling  # noqa: E402
from llama_cpt.runtime.errors import UserError  # noqa: E402
from llama_cpt.training.lowering import require_compiler  # noqa: E402
from tests.golden import tpu_programs  # noqa: E402
from tests.tiny_run import corpora, make_config  # noqa: E402, F401

GOLDENS = tpu_programs.Goldens(tpu_programs.read())


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of ``tests.golden.refresh``."""
    parser.addoption("--refresh-goldens", type=Path, metavar="FOLDER", help="see tests/golden")


def pytest_configure(config: pytest.Config) -> None:
    """Note the folder for the figures that a refresh collects."""
    GOLDENS.additions = config.getoption("--refresh-goldens")


def pytest_unconfigure() -> None:
    """Remove the compiled programs, once all workers have ended."""
    if MADE_CACHE:
        shutil.rmtree(CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first: what is left for the end is short, and easy to share."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Make the TPU compiler ready for a test that is marked ``libtpu``, or skip it.

    Programs of the other fast tests are compiled in half the time, for they run but once; slow
    tests, and the commands that tests start, have all optimizations, as users do.
    """
    for_tpu = item.get_closest_marker("libtpu")
    as_users = bool(for_tpu or item.get_closest_marker("slow"))
    jax.config.update("jax_disable_most_optimizations", not as_users)
    _use_cache(not for_tpu)
    if for_tpu:
        try:
            require_compiler()
        except UserError as error:
            pytest.skip(str(error))


def _use_cache(enabled: bool) -> None:
    """Turn the compilation cache on or off; a program for TPUs cannot be read back without one."""
    if jax.config.jax_enable_compilation_cache != enabled:
        jax.config.update("jax_enable_compilation_cache", enabled)
        # JAX looks at the setting once, unless it is reset.
        jax_cache.reset_cache()


@pytest.fixture(autouse=True)
def tpu_goldens(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]:
    """Compile for TPUs only what ``tests/golden/tpu.json`` does not hold, but for proofs all.

    A test that compiles in its own way calls ``tpu_goldens(key, make)``.
    """
    test = request.node
    if test.get_closest_marker("libtpu") and not test.get_closest_marker("proof"):
        monkeypatch.setattr(compiling, "compile_program", GOLDENS.compiler(test))
    return partial(GOLDENS.recall, test)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report the tests whose programs ``tests/golden/tpu.json`` does not hold."""
    reports = [one for kind in terminalreporter.stats.values() for one in kind]
    compiled = {
        one.nodeid
        for one in reports
        if tpu_programs.COMPILED in dict(getattr(one, "user_properties", ()))
    }
    if compiled:
        terminalreporter.write_line(
            f"{len(compiled)} tests compiled TPU programs that tests/golden/tpu.json does not "
            "hold; run python -m tests.golden.refresh"
        )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text and tokenizers that are not part of the project."""
    folder = Path(os.environ.get("LLAMA_CPT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set LLAMA_CPT_DATA to a folder that has it")
    return folder
