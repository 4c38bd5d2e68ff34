"""Tests of the length of the schedules that the TPU compiler makes for the kernels."""

from collections import Counter
from pathlib import Path

import pytest

from benchmarks import attention_schedule
from benchmarks.attention_schedule import lower_kernel, schedule
from tests.golden.tpu_programs import code_digest, program_hash

pytestmark = pytest.mark.libtpu

# The file that reads the schedule. Its digest is a part of the keys in tests/golden/tpu.json.
READER = Path(attention_schedule.__file__)
SHAPE = {"length": 8192, "heads": 32, "kv_heads": 8, "head_dim": 128, "block": 0}
THOUSAND_SCORES = 4 * 512 * 512 / 1000
# Splash attention's figures per thousand scores: instruction bundles of the forward kernel, bundles
# of both kernels, and cycles of both kernels. MOST has the maximum ratio of our figures to these,
# for a tile without invisible pairs. The maximum ratio of cycles also holds for a tile that a
# segment border crosses.
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
    key = f"{program_hash(*lower_kernel(spec))}-{code_digest(READER)}"
    kernels = tpu_goldens(key, lambda: {"kernels": schedule(spec)[0]})["kernels"]
    # The regions of a kernel are its code for whole, crossed and diagonal tiles, in this order.
    names = sorted(kernels, key=_is_backward)
    forward, backward = ([Counter(region) for region in kernels[name]] for name in names)
    whole, crossed = (f + b for f, b in zip(forward[:2], backward[:2], strict=True))
    taken = (forward[0]["bundles"], whole["bundles"], max(whole["cycles"], crossed["cycles"]))
    ratios = [n / THOUSAND_SCORES / of for n, of in zip(taken, SPLASH[chip], strict=True)]
    assert all(ratio <= most for ratio, most in zip(ratios, MOST[chip], strict=True)), ratios


def _is_backward(name: str) -> bool:
    return "backward" in name
