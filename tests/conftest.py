"""Eight fake CPU devices, strict ranks, shapes that are checked, and where the real data lies."""

import os
from pathlib import Path

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

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
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

from llama_cpt.errors import UserError  # noqa: E402
from llama_cpt.training.ahead_of_time import require_compiler  # noqa: E402


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Make the TPU compiler ready for a test that is marked ``libtpu``, or skip it.

    Programs of the other fast tests are compiled in half the time, for they run but once; slow
    tests, and the commands that tests start, have all optimisations, as users do.
    """
    for_tpu = item.get_closest_marker("libtpu")
    as_users = bool(for_tpu or item.get_closest_marker("slow"))
    jax.config.update("jax_disable_most_optimizations", not as_users)
    if for_tpu:
        try:
            require_compiler()
        except UserError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory) -> Path:
    """Tests of the same program compile it once."""
    folder = tmp_path_factory.mktemp("compiled")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text and tokenizers that are not part of the project."""
    folder = Path(os.environ.get("LLAMA_CPT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set LLAMA_CPT_DATA to a folder that has it")
    return folder
