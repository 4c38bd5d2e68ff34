"""Tests of ``python -m llama_cpt.plan``: error messages, text output, JSON output and search."""

import importlib.util
import json
import logging
import platform
import re
from unittest.mock import Mock

import pytest

from llama_cpt import plan
from llama_cpt.config.loading import load_config
from llama_cpt.hardware.topologies import find_topology
from llama_cpt.planning.buffers import Peak, PeakBreakdown
from llama_cpt.planning.compiling import OutOfMemory, ProgramFigures
from llama_cpt.planning.matrix_flops import MatrixFlops
from llama_cpt.planning.roofline import Roofline
from llama_cpt.planning.search import candidates
from llama_cpt.planning.step_plan import Memory, Plan, workload
from llama_cpt.runtime.errors import NEGATIVE_RESULT, UserError
from tests.conftest import ROOT

CONFIGS = ROOT / "configs" / "llama3"


def run(name: str, topology: str, *options: str) -> int:
    return plan.main([str(CONFIGS / f"{name}.py"), "--topology", topology, *options])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cpt_8b", "v5p-300"), "nearest: v5p:4x4x8"),
        (("cpt_8b", "v5e-32", "--slices", "0"), "--slices 0 must be at least 1"),
        (("cpt_8b", "v5e-32", "--mash.fsdp", "3"), "unknown field 'mash.fsdp'"),
        (("cpt_70b", "v6e-8", "--search"), r"no mesh, remat policy.*v6e:8x8 \(v6e-64\)"),
        (("cpt_8b", "v5e-32", "--search", "--global-batch-size", "7"), "hold rows, here one of"),
        (("cpt_8b", "v5e-32", "--search", "--model.embed-dim", "34"), "divide model.embed_dim=34"),
        (
            ("cpt_70b", "v6e-8", "--search", "--model.num-layers", "9999"),
            "no slice of v6e suffices",
        ),
        (("no_such", "v5e-32"), "no_such.py"),
    ],
)
def test_wrong_arguments_are_rejected(arguments, message):
    with pytest.raises(UserError, match=message):
        run(*arguments)


@pytest.mark.libtpu
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mesh.fsdp", "3"), "does not divide 32 devices"),
        (("--slices", "2"), r"mesh.replica=1 on 2 slices: set mesh.replica=2"),
        (("--global-batch-size", "16"), r"global_batch_size=16 must be a multiple of .* \(32\)"),
        (("--mesh.tensor", "16", "--mesh.fsdp", "2"), "num_kv_heads=8 is .*; set a different mesh"),
        (("--compute.attention", "cudnn"), "cudnn runs on GPUs, not on tpu"),
    ],
)
def test_mesh_or_batch_that_does_not_fit_is_rejected(options, message):
    with pytest.raises(UserError, match=message):
        run("cpt_8b", "v5e-32", *options)


@pytest.mark.libtpu
def test_slice_without_a_mesh_is_rejected():
    """JAX 0.10 has no mesh for this slice. If a later version has one, 224 divides no width."""
    with pytest.raises(UserError, match=r"fsdp=224, .* cannot be laid along|not a .* \(224\)"):
        run("cpt_8b", "v5p-896", "--mesh.fsdp", "-1", "--mesh.tensor", "2")


@pytest.mark.parametrize(
    ("system", "machine", "message"),
    [
        ("Linux", "x86_64", r"not installed; run: pip install -e '\.\[tpu\]'"),
        ("Darwin", "arm64", "docker run --platform linux/amd64"),
        ("Linux", "aarch64", "docker run --platform linux/amd64"),
    ],
)
def test_missing_compiler_is_rejected(system, machine, message, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name)
    )
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(UserError, match=message):
        run("cpt_8b", "v5e-32")


def test_search_in_which_nothing_fits_fails(monkeypatch, caplog):
    """The search logs one line per compiled setting."""
    monkeypatch.setattr(plan, "topology_program", lambda *_: None)
    monkeypatch.setattr(plan, "compiled_plan", lambda *_: OutOfMemory(int(30e9), int(16e9), ()))
    message = "of 17.2 GB, and more when compiled .*the smallest slice that may fit"
    caplog.set_level(logging.INFO, "llama_cpt")
    with pytest.raises(UserError, match=message) as refused:
        run("cpt_8b", "v5e-32", "--search")
    assert refused.value.status == NEGATIVE_RESULT
    output = caplog.messages
    assert all(line.startswith("does not fit: 30.00 GB per device; --mesh.") for line in output)
    available = find_topology("v5e-32").chip.memory_bytes
    config = load_config(str(CONFIGS / "cpt_8b.py"))
    every = candidates(config, find_topology("v5e-32"))
    by_hand = [one for one in every if one.analytic.total < available]
    assert 1 < len(output) == len(set(output)) < len(by_hand) / 2


def test_search_lists_fitting_settings_fastest_first(monkeypatch, capsys):
    """The result is sorted by the roofline's time, and the search stops after five that fit."""
    times = iter([3.0, 1.0, 5.0, 2.0, 4.0])

    def compiled(*_):
        memory = Memory(*[0] * 6, peak=int(7e9), available=int(16e9))
        return Mock(spec=Plan, memory=memory, roofline=Roofline(next(times), 0.0, 0.0, 0.0))

    monkeypatch.setattr(plan, "topology_program", lambda *_: None)
    monkeypatch.setattr(plan, "compiled_plan", compiled)
    assert run("cpt_8b", "v5e-32", "--search") == 0
    output = capsys.readouterr().out.splitlines()
    assert "5 of 5 compiled settings fit" in output[0]
    assert [float(line.split()[0]) for line in output[2:]] == [1, 2, 3, 4, 5]
    assert all("7.00  --mesh.replica 1 --mesh.fsdp " in line for line in output[2:])


SMALL = (
    "--model.num-layers 2 --model.embed-dim 512 --model.mlp-dim 1024 --model.num-heads 4 "
    "--model.num-kv-heads 2 --model.head-dim 128 --model.vocab-size 1024 "
    "--data.sequence-length 512 --global-batch-size 8 --microbatch-size 4 "
    "--evaluation.batch-size 4"
).split()


TWICE = [
    *SMALL,
    *"--global-batch-size 16 --microbatch-size 8 --evaluation.batch-size 8".split(),
]


@pytest.mark.libtpu
@pytest.mark.slow
def test_plan_includes_the_reference_pass(capsys):
    assert run("dpo_8b", "v5e-4", *SMALL) == 0
    output = capsys.readouterr().out
    figures = {name: float(size) for name, size in re.findall(r"  (\w+) +(\d+\.\d+)", output)}
    assert 0 < figures["reference"] < figures["peak"]


@pytest.mark.libtpu
@pytest.mark.slow
def test_plan_of_two_slices(capsys):
    """In a step on two slices, only gradients cross the network between the slices."""
    assert run("cpt_1b", "v5e-4", "--slices", "2", "--mesh.replica", "2", "--json", *TWICE) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chips"] == 8 and found["mesh"]["replica"] == 2 and found["mesh"]["fsdp"] == 4
    crossing = [one for one in found["program"]["collectives"] if "replica" in one["axes"]]
    assert {one["kind"] for one in crossing} == {"all-reduce"}
    # Gradients of two micro-batches. Each device has a quarter of them, in 2 or 4 bytes per value.
    quarter = found["memory"]["parameters"] / 4
    received = sum(one["bytes"] for one in crossing)
    assert 2 * 2 * quarter < received < 1.1 * 2 * 4 * quarter
    assert found["roofline"]["DCN"] > 0


def test_throughput_is_bounded_by_the_roofline():
    topology = find_topology("v5e-4")
    work = plan_of(0.0).work
    peak = work.tokens_per_step * work.flops_per_token / topology.devices / topology.chip.peak_flops
    for most, expected in ((0.7, [0.4, 0.6]), (0.5, [0.4, 0.5]), (0.2, [0.2])):
        found = plan_of(peak / most)
        assert [one.mfu for one in found.throughputs] == pytest.approx(expected)
        tokens = found.throughputs[-1].tokens_per_day
        # At the roofline's bound, a step takes peak / most seconds.
        if most < 0.6:
            assert tokens == pytest.approx(86400 / (peak / most) * work.tokens_per_step)
        assert found.throughputs[-1].days == pytest.approx(work.tokens / tokens)
        assert found.throughputs[-1].chip_hours == pytest.approx(work.tokens / tokens * 24 * 4)


def test_time_saved_by_int8_is_subtracted():
    step = plan_of(0.0).model_flops
    slow, fast = plan_of(0.0).throughputs, plan_of(0.0, step).throughputs
    peak = find_topology("v5e-4").chip.peak_flops
    for one, other in zip(slow, fast, strict=True):
        # int8 halves the time of the product operations, which are as many as the model's.
        assert step / peak / one.mfu - step / peak / other.mfu == pytest.approx(step / peak / 2)
        assert one.chip_hours / other.chip_hours == pytest.approx(other.mfu / one.mfu)


def plan_of(seconds: float, narrow: float = 0.0) -> Plan:
    """Return the plan of a 1B step with an HBM time of ``seconds`` and ``narrow`` int8 FLOPs."""
    work = workload(load_config(str(CONFIGS / "cpt_1b.py")), 1)
    matrix = MatrixFlops(narrow, {"s8": narrow})
    program = ProgramFigures(matrix, 0, (), Peak(0, ()), ())
    line = Roofline(0.0, seconds, 0.0, 0.0)
    memory, parts = Memory(*[0] * 6, peak=0, available=0), PeakBreakdown(0, 0, 0)
    return Plan(find_topology("v5e-4"), {}, "full", work, memory, program, parts, line)


@pytest.mark.slow
@pytest.mark.libtpu
def test_held_out_evaluation_must_fit(capsys):
    """The memory of held-out evaluation is the compiler's peak plus the optimizer's moments."""
    wide = [*SMALL, "--evaluation.batch-size"]
    assert run("cpt_1b", "v5e-4", "--json", *wide, "8192") == 0
    fits = json.loads(capsys.readouterr().out)["memory"]
    assert (
        2e9 < fits["evaluation"]["peak"] < fits["available"] and not fits["evaluation"]["refused"]
    )
    assert run("cpt_1b", "v5e-4", *wide, "40960") == NEGATIVE_RESULT
    output = capsys.readouterr().out
    assert "at least: the compiler rejects it" in output
    assert "first to try: --evaluation.batch-size 4: as many rows as a micro-batch" in output


@pytest.mark.libtpu
def test_plan_of_a_small_step(capsys):
    """Plan a model like 1B with two layers on four chips."""
    assert run("cpt_1b", "v5e-4", "--json", *SMALL) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["chips"] == 4 and found["mesh"]["fsdp"] == 4
    kinds = {one["kind"] for one in found["program"]["collectives"]}
    assert {"all-gather", "reduce-scatter"} <= kinds
    matrix = found["program"]["matrix"]
    assert set(matrix["by_kernel"]) == {"flash_attention_forward", "flash_attention_backward"}
    assert not matrix["unknown_kernels"] and not found["program"]["uncounted_loops"]
    assert 1.1 < matrix["total"] / found["model_flops"] < 1.5
    memory = found["memory"]
    assert memory["peak"] < memory["available"]
    # Evaluation needs the weights, the moments and a small amount for a few rows.
    assert 3 * memory["parameters"] < memory["evaluation"]["peak"] < memory["peak"]
