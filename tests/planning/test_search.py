"""Tests of the analytic estimates, the search over settings, and the suggested remedies."""

from dataclasses import replace
import math

import pytest

from llama_cpt.config.loading import load_config
from llama_cpt.config.schema import LoraConfig
from llama_cpt.hardware.topologies import find_topology
from llama_cpt.planning.analytic import analytic_memory, parameters
from llama_cpt.planning.compiling import parse_out_of_memory
from llama_cpt.planning.search import (
    DOUBT,
    CompiledCandidate,
    candidates,
    expected_bytes,
    first_remedy,
    may_fit,
    next_to_try,
    smallest_topology,
)
from llama_cpt.planning.step_plan import Memory, PassMemory
from tests.conftest import ROOT


def shipped(name: str):
    return load_config(str(ROOT / "configs" / "llama3" / f"{name}.py"))


def test_analytic_memory_of_70b():
    """On 128 chips: 6.6 GB of arguments, 2.2 GB of gradients and 21.5 GB of saved layer inputs."""
    config = shipped("cpt_70b")
    assert parameters(config.architecture) == 70_553_706_496
    found = analytic_memory(config, {"fsdp": 128})
    assert found.arguments == 12 * parameters(config.architecture) / 128
    assert found.gradients == found.arguments / 3
    assert found.saved == 80 * 2 * 8192 * 8192 * 2
    assert found.gathered == 8192 * 28672 * 2
    # While 2.1 GB of gradients are allocated, 21.5 GB of inputs are freed: the peak is 21.8 GB.
    assert found.saved + found.gradients - found.never_together == pytest.approx(21.8e9, rel=0.01)
    assert not analytic_memory(replace(config, microbatch_size=128), {"fsdp": 128}).never_together
    halved = analytic_memory(replace(config, microbatch_size=128), {"fsdp": 128})
    assert halved.saved == found.saved / 2
    assert analytic_memory(config, {"fsdp": 64, "tensor": 2}).saved == found.saved * 2


def test_candidates_are_distinct_and_sorted_by_time():
    config, topology = shipped("cpt_8b"), find_topology("v5e-32")
    every = candidates(config, topology)
    assert [one.seconds for one in every] == sorted(one.seconds for one in every)
    assert len({one.options for one in every}) == len(every)
    assert {one.config.compute.remat for one in every} >= {"none", "full", "offload"}
    assert {one.mesh["tensor"] for one in every} == {1, 2, 4, 8}
    for one in every:
        assert one.mesh["fsdp"] * one.mesh["tensor"] == 32
        assert config.global_batch_size % one.config.microbatch_size == 0
    wide = max(every, key=lambda one: one.analytic.total)
    same = [
        one for one in every if one.mesh == wide.mesh and one.config.compute == wide.config.compute
    ]
    narrow = min(same, key=lambda one: one.analytic.total)
    assert may_fit(narrow, [wide]) and not may_fit(wide, [narrow])
    offloads = next(one for one in every if one.config.compute.remat == "offload")
    keeps = [one for one in every if one.options == offloads.options.replace("offload", "none")]
    assert may_fit(offloads, keeps) and not may_fit(keeps[0], [offloads])
    full = [one for one in every if one.options == offloads.options.replace("offload", "full")]
    assert may_fit(full[0], [offloads])


def test_compiled_settings_correct_the_expectation():
    """The excess of a compiled setting raises the expectation for settings of its remat policy."""
    available = 16_000_000_000
    every = candidates(shipped("cpt_8b"), find_topology("v5e-32"))
    left = [one for one in every if one.analytic.total < available]
    first = next_to_try(left, [], available)
    assert first and first is left[0]
    tried = [CompiledCandidate(first, int(first.analytic.total + 40e9), False)]
    for one in left:
        same = one.config.compute.remat == first.config.compute.remat
        share = min(1.0, one.analytic.saved / first.analytic.saved)
        assert expected_bytes(one, tried) == one.analytic.total + (40e9 * share if same else 0)
    second = next_to_try(left, tried, available)
    assert second
    assert second is next(
        one for one in left if expected_bytes(one, tried) < available and may_fit(one, [first])
    )
    assert second.config.compute.remat != first.config.compute.remat
    # A setting above the available memory is tried only if nothing fits yet.
    doubtful = [one for one in left if one.config.compute.remat == "full"][-1]
    needed = int(available * (1 + DOUBT) / 2)
    unlike = next(one for one in every if one.mesh != doubtful.mesh and one.analytic.saved)
    unlike = replace(unlike, config=doubtful.config, analytic=doubtful.analytic)
    tried = [CompiledCandidate(unlike, needed, False)]
    assert next_to_try([doubtful], tried, available) is doubtful
    assert (
        next_to_try([doubtful], [*tried, CompiledCandidate(first, 10**9, True)], available) is None
    )


def test_int8_candidates_respect_the_token_limit():
    config, topology = shipped("cpt_8b"), find_topology("v5p:2x2x4")
    compute = replace(config.compute, matmul_precision="int8")
    most = max(
        one.config.microbatch_size // one.mesh["fsdp"] * config.data.sequence_length
        for one in candidates(replace(config, compute=compute), topology)
    )
    assert most == 2**17


@pytest.mark.parametrize("name", ["v5e-128", "v5e-256"])
def test_evaluation_is_fitted_to_the_mesh(name):
    """The search raises the config's 8 evaluation rows to a multiple of the fsdp axis."""
    every = candidates(shipped("cpt_1b"), find_topology(name))
    assert 32 in {one.mesh["fsdp"] for one in every}
    for one in every:
        rows = one.config.evaluation.batch_size
        assert rows == one.mesh["fsdp"]
        assert one.options.endswith(f" --evaluation.batch-size {rows}")
    few = candidates(shipped("cpt_1b"), find_topology("v5e-8"))
    # The evaluation batch is reduced to the micro-batch size.
    assert {4, 8} <= {one.config.microbatch_size for one in few}
    assert all(("evaluation" in one.options) == (one.config.microbatch_size < 8) for one in few)


def test_long_rows_are_shared_by_devices():
    config, topology = shipped("cpt_8b_long"), find_topology("v5p:4x4x4")
    every = candidates(config, topology)
    assert {one.mesh["context"] for one in every} == {1, 2, 4, 8, 16}
    assert all(math.prod(one.mesh.values()) == 64 for one in every)
    assert "--mesh.context 8 " in next(one for one in every if one.mesh["context"] == 8).options
    whole = replace(config, compute=replace(config.compute, attention="splash"))
    assert {one.mesh["context"] for one in candidates(whole, topology)} == {1}


def test_smallest_topology_that_may_fit():
    config, topology = shipped("cpt_70b"), find_topology("v6e-8")
    assert (
        min(one.analytic.total for one in candidates(config, topology)) > topology.chip.memory_bytes
    )
    larger = smallest_topology(config, topology)
    assert larger == "v6e:8x8 (v6e-64)"
    few = replace(config, evaluation=replace(config.evaluation, batch_size=2))
    assert smallest_topology(few, topology) == larger
    assert "more chips: v6e:8x8" in first_remedy(config, topology, {"fsdp": 8})


def test_smallest_topology_with_a_small_batch():
    config, topology = replace(shipped("cpt_70b"), global_batch_size=8), find_topology("v5e-64")
    assert smallest_topology(config, topology) == (
        "v5e:8x16 (v5e-128) with a global_batch_size that 16 divides"
    )


def test_first_remedy_removes_copies_within_a_slice():
    config, topology = shipped("cpt_8b"), find_topology("v5e-16")
    remedy = first_remedy(config, topology, {"replica": 4, "fsdp": 4})
    assert remedy.startswith("--mesh.replica 1 --mesh.fsdp 16: one copy")
    assert first_remedy(shipped("cpt_70b"), topology, {"replica": 4, "fsdp": 4}).startswith("more")


def test_lora_base_weights_are_read_in_float32():
    lora = LoraConfig(rank=16, alpha=32.0)
    config, topology = replace(shipped("cpt_70b"), lora=lora, init_from="x"), find_topology("v6e-8")
    remedy = first_remedy(config, topology, {"fsdp": 8})
    assert remedy.startswith(
        "more chips: v6e:4x4 (v6e-16) at least; weights as they are read alone"
    )
    assert all(
        one.analytic.total >= one.analytic.loading > 34e9 for one in candidates(config, topology)
    )


def test_kto_needs_two_rows():
    config = shipped("dpo_8b")
    objective = replace(config.objective, loss="kto", nll_weight=0.0)
    config = replace(config, objective=objective)
    rows = [one.config.microbatch_size for one in candidates(config, find_topology("v5p:2x2x2"))]
    assert min(rows) == 2
    whole = replace(config, microbatch_size=2)
    remedy = first_remedy(whole, find_topology("v5p:2x2x2"), {"fsdp": 1, "tensor": 8})
    assert "--search" in remedy


@pytest.mark.parametrize(
    ("remat", "microbatch", "remedy"),
    [
        ("dots", 0, "--compute.remat full"),
        ("full", 0, "--microbatch-size 128: 4 rows"),
        ("full", 32, "mesh.tensor"),
        ("full", 160, "--microbatch-size 32: 1 rows"),
    ],
)
def test_first_remedy(remat, microbatch, remedy):
    config = shipped("cpt_8b")
    config = replace(
        config,
        compute=replace(config.compute, remat=remat),
        global_batch_size=320 if microbatch == 160 else config.global_batch_size,
        microbatch_size=microbatch,
    )
    assert remedy in first_remedy(config, find_topology("v5e-32"), {"replica": 1, "fsdp": 32})


def test_only_evaluation_is_too_large():
    config, topology = shipped("cpt_8b"), find_topology("v5e-32")
    config = replace(config, microbatch_size=32)
    memory = Memory(*[0] * 6, peak=int(9e9), available=int(16e9))
    refused = replace(memory, evaluation=PassMemory(int(15e9), refused=True))
    assert memory.fits and not refused.fits and refused.left > 0
    for found in (refused, replace(memory, evaluation=PassMemory(int(17e9)))):
        remedy = first_remedy(config, topology, {"fsdp": 32}, found)
        assert remedy.startswith("--evaluation.batch-size 32: ")
    above = replace(refused, peak=int(17e9))
    assert "evaluation" not in first_remedy(config, topology, {"fsdp": 32}, above)


REFUSAL = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory \
space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.

  Largest program allocations in hbm:

  1. Size: 4.00G
     Operator: op_name="jit(step)/jvp()/while" source_file="llama.py" source_line=1
     Shape: bf16[32,2,8192,4096]{3,2,1,0:T(8,128)(2,1)}
     Unpadded size: 4.00G

  2. Size: 512.0M
     Shape: f32[4008,4096]{1,0:T(8,128)}
"""


EARLY_REFUSAL = """RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the \
total memory required for HLO temporaries (44.50G) exceeds available HBM (15.75G). HLO module: \
jit_step."""


def test_out_of_memory_messages_are_parsed():
    refused = parse_out_of_memory(REFUSAL)
    assert refused
    assert (refused.used, refused.available) == (20.5 * 2**30, 15.75 * 2**30)
    assert refused.arrays == (
        (4 << 30, "bf16[32,2,8192,4096]", "jit(step)/jvp()/while"),
        (512 << 20, "f32[4008,4096]", ""),
    )
    early = parse_out_of_memory(EARLY_REFUSAL)
    assert early
    assert (early.used, early.available, early.arrays) == (44.5 * 2**30, 15.75 * 2**30, ())
    assert parse_out_of_memory("INTERNAL: something else") is None
