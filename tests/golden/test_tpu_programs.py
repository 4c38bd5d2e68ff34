"""Tests that stored figures equal a new compilation, and that keys are equal in each checkout."""

import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest

from llama_cpt.config.loading import load_config
from llama_cpt.planning import compiling
from llama_cpt.planning.compiling import OutOfMemory
from llama_cpt.training.lowering import lower_program, topology_program
from tests.conftest import ROOT
from tests.golden.tpu_programs import COMPILE, code_digest, decode, encode, key_of, read

pytestmark = pytest.mark.libtpu

SMALL = (
    "--model.num-layers 2 --model.embed-dim 128 --model.mlp-dim 256 --model.num-heads 2 "
    "--model.num-kv-heads 1 --model.head-dim 64 --model.vocab-size 512 --compute.attention "
    "reference --data.sequence-length 128 --global-batch-size 4 --microbatch-size 4"
).split()


def lower_small():
    program = topology_program(
        load_config(str(ROOT / "configs" / "llama3" / "cpt_1b.py"), SMALL), "v5e:2x2"
    )
    return lower_program(
        load_config(str(ROOT / "configs" / "llama3" / "cpt_1b.py"), SMALL), program
    ), program.mesh


@pytest.mark.slow
def test_stored_figures_equal_a_new_compilation():
    """This program is always compiled, so that wrong stored figures do not stay unnoticed."""
    lowered, mesh = lower_small()
    assert key_of(lowered, mesh) in read(), "run python -m tests.golden.refresh"
    fresh, kept = encode(COMPILE(lowered, mesh)), encode(compiling.compile_program(lowered, mesh))
    assert kept == fresh
    assert encode(decode(fresh)) == fresh


def test_out_of_memory_result_round_trips():
    refused = OutOfMemory(20, 10, ((5, "f32[2]", "jit(step)"),))
    assert decode(encode(refused)) == refused


PRINT_KEY = """
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_traceback_in_locations_limit", 0)
from tests.golden.test_tpu_programs import lower_small
from tests.golden.tpu_programs import key_of
print(key_of(*lower_small()))
"""


@pytest.mark.slow
def test_the_hash_does_not_depend_on_path_or_line(tmp_path):
    """Compare with the key of a copy in a different folder with one more line in each file."""
    for folder in ("llama_cpt", "pallas_kernels", "configs", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for path in (*tmp_path.glob("llama_cpt/**/*.py"), *tmp_path.glob("pallas_kernels/*.py")):
        if "from __future__" not in (text := path.read_text("utf-8")):
            path.write_text("# Another line.\n" + text, "utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PRINT_KEY],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == key_of(*lower_small()), done.stderr


def test_the_digest_covers_statements_only(tmp_path):
    file = tmp_path / "code.py"

    def digest(text: str) -> str:
        code_digest.cache_clear()
        file.write_text(text, "utf-8")
        return code_digest(file)

    plain = digest("def f(a):\n    return a + 1\n")
    assert digest('"""Doc."""\ndef f(a):\n    """Doc."""\n    return (a+1)  # Reason.\n') == plain
    assert digest("def f(a):\n    return a + 2\n") != plain


def test_golden_file_is_small():
    assert Path(ROOT / "tests/golden/tpu.json").stat().st_size < 300_000
    assert read()
