"""Configuration of all tests: eight fake CPU devices, strict ranks, checked shapes, fixtures."""

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
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
# gcsfs reads these when it is imported: use no account, and do not ask whether a bucket has
# folders, which needs a protocol that ``storage_server`` does not have.
os.environ["FSSPEC_GCS_TOKEN"] = "anon"
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"


def shared_cache() -> tuple[str, bool]:
    """Return the folder of the compilation cache, and whether this process created it.

    All workers and the commands that tests start share the cache. LLAMA_CPT_TEST_CACHE names a
    folder that is kept; without it, each run of pytest creates and removes a folder.
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
# Without file names and lines, the text of a lowered program is the same in every checkout.
jax.config.update("jax_traceback_in_locations_limit", 0)
# Use the same examples in every run, so that a failure is repeatable.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("same")

ROOT = Path(__file__).resolve().parents[1]
# Checks are slow, so only modules with shapes in their signatures are checked.
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

OPTIMIZED = pytest.StashKey[bool]()
"""True for tests whose programs are compiled with all optimizations."""
GOLDENS = tpu_programs.Goldens(tpu_programs.read())


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the command-line option that ``tests.golden.refresh`` passes."""
    parser.addoption("--refresh-goldens", type=Path, metavar="FOLDER", help="see tests/golden")


def pytest_configure(config: pytest.Config) -> None:
    """Set the folder to which a refresh of the golden figures writes."""
    GOLDENS.additions = config.getoption("--refresh-goldens")


def pytest_unconfigure() -> None:
    """Remove the compilation cache after all workers have exited."""
    if MADE_CACHE:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.hookimpl(trylast=True)  # Only for the tests that ``-m`` selects.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that the last tests are short and easy to share.

    Programs of the other files are compiled in half the time, because each of their programs runs
    only once. Files with slow tests, tests that compile for TPUs, and commands that tests start
    have all optimizations, as for users. The choice is per file, because tests of one file share
    fixtures and compare them bit by bit.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        item.stash[OPTIMIZED] = item.path in slow or bool(item.get_closest_marker("libtpu"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Configure the compiler; skip a test marked ``libtpu`` if the TPU compiler is not
    installed."""
    for_tpu = item.get_closest_marker("libtpu")
    _optimize(item.stash[OPTIMIZED])
    _use_cache(not for_tpu)
    if for_tpu:
        try:
            require_compiler()
        except UserError as error:
            pytest.skip(str(error))


def _optimize(enabled: bool) -> None:
    """Compile the programs of the next tests with all optimizations, or without most of them."""
    if jax.config.values["jax_disable_most_optimizations"] == enabled:
        jax.config.update("jax_disable_most_optimizations", not enabled)
        # A program in memory is used again whatever the setting was when it was compiled.
        jax.clear_caches()


def _use_cache(enabled: bool) -> None:
    """Turn the compilation cache on or off; JAX cannot load TPU programs from it without a TPU."""
    if jax.config.values["jax_enable_compilation_cache"] != enabled:
        jax.config.update("jax_enable_compilation_cache", enabled)
        # JAX reads the setting only once, unless the cache is reset.
        jax_cache.reset_cache()


@pytest.fixture(autouse=True)
def tpu_goldens(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]:
    """Compile TPU programs only if ``tests/golden/tpu.json`` lacks them; proofs compile all.

    Returns ``recall(key, make)`` for tests that compile without ``compile_program``.
    """
    test = request.node
    if test.get_closest_marker("libtpu") and not test.get_closest_marker("proof"):
        monkeypatch.setattr(compiling, "compile_program", GOLDENS.compiler(test))
    return partial(GOLDENS.recall, test)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests compiled programs that are missing in ``tests/golden/tpu.json``."""
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
    """The folder with real text and tokenizers, which are not part of the repository."""
    folder = Path(os.environ.get("LLAMA_CPT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set LLAMA_CPT_DATA to a folder that has it")
    return folder
