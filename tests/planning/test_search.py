"""Hand sums, what a search tries and in which order, remedies."""

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
    return load_config(str(ROOT / "configs" / f"{name}.py"))


def test_hand_sum_of_70b():
    """128 chips, 2 x 8192 tokens each: 6.6 GB of arguments, 2.2 of gradients, 21.5 of carries."""
    config = shipped("cpt_70b")
    assert parameters(config.model) == 70_553_706_496
    found = analytic_memory(config, {"fsdp": 128})
    assert found.arguments == 12 * parameters(config.model) / 128
    assert found.gradients == found.arguments / 3
    assert found.saved == 80 * 2 * 8192 * 8192 * 2
    assert found.gathered == 8192 * 28672 * 2
    # 2.1 GB of layers' gradients are made while 21.5 of inputs go: they balance at 21.7.
    assert found.saved + found.gradients - found.never_together == pytest.approx(21.8e9, rel=0.01)
    assert not analytic_memory(replace(config, microbatch_size=128), {"fsdp": 128}).never_together
    halved = analytic_memory(replace(config, microbatch_size=128), {"fsdp": 128})
    assert halved.saved == found.saved / 2
    assert analytic_memory(config, {"fsdp": 64, "tensor": 2}).saved == found.saved * 2


def test_search_tries_the_fast_first_and_nothing_twice():
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


def test_search_learns_from_what_was_compiled():
    """What a policy needed beside the sum by hand, its other settings are expected to need too."""
    available = 16_000_000_000
    every = candidates(shipped("cpt_8b"), find_topology("v5e-32"))
    left = [one for one in every if one.analytic.total < available]
    first = next_to_try(left, [], available)
    assert first is left[0]
    tried = [CompiledCandidate(first, int(first.analytic.total + 40e9), False)]
    for one in left:
        same = one.config.compute.remat == first.config.compute.remat
        share = min(1.0, one.analytic.saved / first.analytic.saved)
        assert expected_bytes(one, tried) == one.analytic.total + (40e9 * share if same else 0)
    second = next_to_try(left, tried, available)
    assert second is next(
        one for one in left if expected_bytes(one, tried) < available and may_fit(one, [first])
    )
    assert second.config.compute.remat != first.config.compute.remat
    # In doubt only as long as nothing fits.
    doubtful = [one for one in left if one.config.compute.remat == "full"][-1]
    needed = int(available * (1 + DOUBT) / 2)
    unlike = next(one for one in every if one.mesh != doubtful.mesh and one.analytic.saved)
    unlike = replace(unlike, config=doubtful.config, analytic=doubtful.analytic)
    tried = [CompiledCandidate(unlike, needed, False)]
    assert next_to_try([doubtful], tried, available) is doubtful
    assert (
        next_to_try([doubtful], [*tried, CompiledCandidate(first, 10**9, True)], available) is None
    )


def test_eight_bits_are_tried_with_the_tokens_that_they_can_sum():
    config, topology = shipped("cpt_8b"), find_topology("v5p:2x2x4")
    compute = replace(config.compute, matmul_precision="int8")
    most = max(
        one.config.microbatch_size // one.mesh["fsdp"] * config.data.sequence_length
        for one in candidates(replace(config, compute=compute), topology)
    )
    assert most == 2**17


@pytest.mark.parametrize("name", ["v5e-128", "v5e-256"])
def test_evaluation_is_fitted_to_the_mesh(name):
    """The config's batch of 8 rows is for few devices; what is trained is none of its concern."""
    every = candidates(shipped("cpt_1b"), find_topology(name))
    assert 32 in {one.mesh["fsdp"] for one in every}
    for one in every:
        rows = one.config.evaluation.batch_size
        assert rows == one.mesh["fsdp"]
        assert one.options.endswith(f" --evaluation.batch-size {rows}")
    few = candidates(shipped("cpt_1b"), find_topology("v5e-8"))
    # What fits a step's rows at a time fits no more of them scored.
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


def test_what_cannot_fit_names_what_may():
    config, topology = shipped("cpt_70b"), find_topology("v6e-8")
    assert (
        min(one.analytic.total for one in candidates(config, topology)) > topology.chip.memory_bytes
    )
    larger = smallest_topology(config, topology)
    assert larger == "v6e:8x8 (v6e-64)"
    few = replace(config, evaluation=replace(config.evaluation, batch_size=2))
    assert smallest_topology(few, topology) == larger
    assert "more chips: v6e:8x8" in first_remedy(config, topology, {"fsdp": 8})


def test_a_small_batch_hides_no_slice():
    config, topology = replace(shipped("cpt_70b"), global_batch_size=8), find_topology("v5e-64")
    assert smallest_topology(config, topology) == (
        "v5e:8x16 (v5e-128) with a global_batch_size that 16 divides"
    )


def test_copies_on_one_slice_are_the_first_to_go():
    config, topology = shipped("cpt_8b"), find_topology("v5e-16")
    told = first_remedy(config, topology, {"replica": 4, "fsdp": 4})
    assert told.startswith("--mesh.replica 1 --mesh.fsdp 16: one copy")
    assert first_remedy(shipped("cpt_70b"), topology, {"replica": 4, "fsdp": 4}).startswith("more")


def test_weights_beside_adapters_are_read_as_float32():
    lora = LoraConfig(rank=16, alpha=32.0)
    config, topology = replace(shipped("cpt_70b"), lora=lora, init_from="x"), find_topology("v6e-8")
    told = first_remedy(config, topology, {"fsdp": 8})
    assert told.startswith("more chips: v6e:4x4 (v6e-16) at least; weights as they are read alone")
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
    told = first_remedy(whole, find_topology("v5p:2x2x2"), {"fsdp": 1, "tensor": 8})
    assert "--search" in told


@pytest.mark.parametrize(
    ("remat", "microbatch", "told"),
    [
        ("dots", 0, "--compute.remat full"),
        ("full", 0, "--microbatch-size 128: 4 rows"),
        ("full", 32, "mesh.tensor"),
        ("full", 160, "--microbatch-size 32: 1 rows"),
    ],
)
def test_first_remedy(remat, microbatch, told):
    config = shipped("cpt_8b")
    config = replace(
        config,
        compute=replace(config.compute, remat=remat),
        global_batch_size=320 if microbatch == 160 else config.global_batch_size,
        microbatch_size=microbatch,
    )
    assert told in first_remedy(config, find_topology("v5e-32"), {"replica": 1, "fsdp": 32})


def test_only_evaluation_is_too_large():
    config, topology = shipped("cpt_8b"), find_topology("v5e-32")
    config = replace(config, microbatch_size=32)
    memory = Memory(*[0] * 6, peak=int(9e9), available=int(16e9))
    refused = replace(memory, evaluation=PassMemory(int(15e9), refused=True))
    assert memory.fits and not refused.fits and refused.left > 0
    for found in (refused, replace(memory, evaluation=PassMemory(int(17e9)))):
        told = first_remedy(config, topology, {"fsdp": 32}, found)
        assert told.startswith("--evaluation.batch-size 32: ")
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


def test_the_compilers_refusal_is_read():
    refused = parse_out_of_memory(REFUSAL)
    assert (refused.used, refused.available) == (20.5 * 2**30, 15.75 * 2**30)
    assert refused.arrays == (
        (4 << 30, "bf16[32,2,8192,4096]", "jit(step)/jvp()/while"),
        (512 << 20, "f32[4008,4096]", ""),
    )
    early = parse_out_of_memory(EARLY_REFUSAL)
    assert (early.used, early.available, early.arrays) == (44.5 * 2**30, 15.75 * 2**30, ())
    assert parse_out_of_memory("INTERNAL: something else") is None
