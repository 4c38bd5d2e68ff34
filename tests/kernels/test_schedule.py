"""The schedule that the TPU compiler makes of the kernels stays as short as it was measured."""

import ast
from collections import Counter
import hashlib
from pathlib import Path

import pytest

from benchmarks import attention_schedule
from benchmarks.attention_schedule import lower_kernel, schedule
from tests.golden.tpu_programs import key_of

pytestmark = pytest.mark.libtpu


def _code_of(file: str) -> bytes:
    """Return the statements of a Python file without its comments and docstrings."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_text(one)] or [ast.Pass()]
    return ast.unparse(tree).encode()


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


# The code that reads the schedule decides the figures too.
READER = _code_of(attention_schedule.__file__)
SHAPE = {"length": 8192, "heads": 32, "kv_heads": 8, "head_dim": 128, "block": 0}
THOUSAND_SCORES = 4 * 512 * 512 / 1000
# Per thousand scores: splash's bundles forward, its bundles in both passes, and its cycles in both.
# MOST has the largest ratio of ours to each, for a whole tile and, in cycles, a crossed tile too.
SPLASH = {
    "v5e": (4.53, 13.42, 15.02),
    "v5p": (4.54, 13.33, 15.00),
    "v6e": (3.61, 9.31, 9.60),
    "tpu7x": (3.57, 8.87, 9.57),
}
MOST = {
    "v5e": (0.88, 0.93, 0.97),
    "v5p": (0.88, 0.97, 0.96),
    "v6e": (0.75, 0.85, 0.85),
    "tpu7x": (0.75, 0.85, 0.85),
}


@pytest.mark.slow
@pytest.mark.parametrize("chip", SPLASH)
def test_schedule_is_shorter_than_splash_attentions(chip, tpu_goldens):
    spec = {"chip": chip} | SHAPE
    key = f"{key_of(*lower_kernel(spec))}-{hashlib.sha256(READER).hexdigest()[:8]}"
    kernels = tpu_goldens(key, lambda: {"kernels": schedule(spec)[0]})["kernels"]
    # Regions come as whole, crossed, diagonal.
    names = sorted(kernels, key=_is_backward)
    forward, backward = ([Counter(region) for region in kernels[name]] for name in names)
    whole, crossed = (f + b for f, b in zip(forward[:2], backward[:2], strict=True))
    taken = (forward[0]["bundles"], whole["bundles"], max(whole["cycles"], crossed["cycles"]))
    ratios = [n / THOUSAND_SCORES / of for n, of in zip(taken, SPLASH[chip], strict=True)]
    assert all(ratio <= most for ratio, most in zip(ratios, MOST[chip], strict=True)), ratios


def _is_backward(name: str) -> bool:
    return "backward" in name
