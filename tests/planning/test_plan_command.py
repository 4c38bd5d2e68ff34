"""``python -m llama_cpt.plan``: mistakes in one line, an answer in words and in JSON."""

import importlib.util
import json
import platform
import re
from unittest.mock import Mock

import pytest

from llama_cpt import plan
from llama_cpt.config.loading import load_config
from llama_cpt.hardware.topologies import find_topology
from llama_cpt.planning.buffers import Peak
from llama_cpt.planning.compiling import OutOfMemory, ProgramFigures
from llama_cpt.planning.matrix_flops import MatrixFlops
from llama_cpt.planning.roofline import Roofline
from llama_cpt.planning.search import candidates
from llama_cpt.planning.step_plan import Memory, Plan, workload
from llama_cpt.runtime.errors import NEGATIVE_RESULT, UserError
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"


def run(name: str, topology: str, *options: str) -> int:
    return plan.main([str(CONFIGS / f"{name}.py"), "--topology", topology, *options])


@pytest.mark.parametrize(
    ("arguments", "told"),
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
def test_mistakes_are_told(arguments, told):
    with pytest.raises(UserError, match=told):
        run(*arguments)


@pytest.mark.libtpu
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--mesh.fsdp", "3"), "does not divide 32 devices"),
        (("--slices", "2"), r"mesh.replica=1 on 2 slices: set mesh.replica=2"),
        (("--global-batch-size", "16"), r"global_batch_size=16 must be a multiple of .* \(32\)"),
        (("--mesh.tensor", "16", "--mesh.fsdp", "2"), "num_kv_heads=8 is .*; set another mesh"),
        (("--compute.attention", "cudnn"), "cudnn runs on GPUs, not on tpu"),
    ],
)
def test_a_mesh_or_batch_of_another_size_is_told(options, told):
    with pytest.raises(UserError, match=told):
        run("cpt_8b", "v5e-32", *options)


@pytest.mark.libtpu
def test_a_slice_along_which_no_mesh_lies_is_told():
    """JAX 0.10 cannot lay it out; where it can, 224 divides no width."""
    with pytest.raises(UserError, match=r"fsdp=224, .* cannot be laid along|not a .* \(224\)"):
        run("cpt_8b", "v5p-896", "--mesh.fsdp", "-1", "--mesh.tensor", "2")


@pytest.mark.parametrize(
    ("system", "machine", "told"),
    [
        ("Linux", "x86_64", r"not installed; run: pip install -e '\.\[tpu\]'"),
        ("Darwin", "arm64", "docker run --platform linux/amd64"),
        ("Linux", "aarch64", "docker run --platform linux/amd64"),
    ],
)
def test_a_missing_compiler_is_told(system, machine, told, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name)
    )
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(UserError, match=told):
        run("cpt_8b", "v5e-32")


def test_a_search_of_which_nothing_fits_once_compiled(monkeypatch, capsys):
    """Each setting that was compiled is told, once."""
    monkeypatch.setattr(plan, "topology_program", lambda *_: None)
    monkeypatch.setattr(plan, "compiled_plan", lambda *_: OutOfMemory(int(30e9), int(16e9), ()))
    told = "of 17.2, and more when compiled .*the smallest slice that may fit"
    with pytest.raises(UserError, match=told) as refused:
        run("cpt_8b", "v5e-32", "--search")
    assert refused.value.status == NEGATIVE_RESULT
    told = capsys.readouterr().err.splitlines()
    assert all(line.startswith("does not fit: 30.00 GB per device; --mesh.") for line in told)
    available = find_topology("v5e-32").chip.memory_bytes
    config = load_config(str(CONFIGS / "cpt_8b.py"))
    every = candidates(config, find_topology("v5e-32"))
    by_hand = [one for one in every if one.analytic.total < available]
    assert 1 < len(told) == len(set(told)) < len(by_hand) / 2


def test_a_search_lists_what_fits_the_fastest_first(monkeypatch, capsys):
    """Compiled, the order is another than by hand; it stops when five fit."""
    times = iter([3.0, 1.0, 5.0, 2.0, 4.0])

    def compiled(*_):
        memory = Memory(*[0] * 6, peak=int(7e9), available=int(16e9))
        return Mock(spec=Plan, memory=memory, roofline=Roofline(next(times), 0.0, 0.0, 0.0))

    monkeypatch.setattr(plan, "topology_program", lambda *_: None)
    monkeypatch.setattr(plan, "compiled_plan", compiled)
    assert run("cpt_8b", "v5e-32", "--search") == 0
    told = capsys.readouterr().out.splitlines()
    assert "5 of 5 compiled settings fit" in told[0]
    assert [float(line.split()[0]) for line in told[2:]] == [1, 2, 3, 4, 5]
    assert all("7.00  --mesh.replica 1 --mesh.fsdp " in line for line in told[2:])


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
def test_the_reference_pass_is_planned(capsys):
    assert run("dpo_8b", "v5e-4", *SMALL) == 0
    told = capsys.readouterr().out
    peak, reference = (
        float(re.search(rf"  {name} +([\d.]+)", told)[1]) for name in ("peak", "reference")
    )
    assert 0 < reference < peak


@pytest.mark.libtpu
@pytest.mark.slow
def test_two_slices_are_planned(capsys):
    """A whole step: gradients alone cross the network between the slices."""
    assert run("cpt_1b", "v5e-4", "--slices", "2", "--mesh.replica", "2", "--json", *TWICE) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["chips"] == 8 and told["mesh"]["replica"] == 2 and told["mesh"]["fsdp"] == 4
    crossing = [one for one in told["program"]["collectives"] if "replica" in one["axes"]]
    assert {one["kind"] for one in crossing} == {"all-reduce"}
    # Two micro-batches' gradients, a quarter of them each device, in 2 or 4 bytes.
    quarter = told["memory"]["parameters"] / 4
    received = sum(one["bytes"] for one in crossing)
    assert 2 * 2 * quarter < received < 1.1 * 2 * 4 * quarter
    assert told["roofline"]["DCN"] > 0


def test_no_pace_is_told_above_the_roofline():
    topology = find_topology("v5e-4")
    work = plan_of(0.0).work
    peak = work.tokens_per_step * work.flops_per_token / topology.devices / topology.chip.peak_flops
    for most, told in ((0.7, [0.4, 0.6]), (0.5, [0.4, 0.5]), (0.2, [0.2])):
        found = plan_of(peak / most)
        assert [pace.mfu for pace in found.throughputs] == pytest.approx(told)
        tokens = found.throughputs[-1].tokens_per_day
        # At the roofline itself: so many steps a day.
        if most < 0.6:
            assert tokens == pytest.approx(86400 / (peak / most) * work.tokens_per_step)
        assert found.throughputs[-1].days == pytest.approx(work.tokens / tokens)
        assert found.throughputs[-1].chip_hours == pytest.approx(work.tokens / tokens * 24 * 4)


def test_what_eight_bits_save_comes_off_the_time():
    step = plan_of(0.0).model_flops
    slow, fast = plan_of(0.0).throughputs, plan_of(0.0, step).throughputs
    peak = find_topology("v5e-4").chip.peak_flops
    for one, other in zip(slow, fast, strict=True):
        # Half of as many operations as the model has.
        assert step / peak / one.mfu - step / peak / other.mfu == pytest.approx(step / peak / 2)
        assert one.chip_hours / other.chip_hours == pytest.approx(other.mfu / one.mfu)


def plan_of(seconds: float, narrow: float = 0.0) -> Plan:
    """Of a 1B step that takes so long by HBM, with so many products in int8."""
    work = workload(load_config(str(CONFIGS / "cpt_1b.py")), 1)
    matrix = MatrixFlops(narrow, {"s8": narrow})
    program = ProgramFigures(matrix, 0, (), Peak(0, ()), ())
    line = Roofline(0.0, seconds, 0.0, 0.0)
    return Plan(find_topology("v5e-4"), {}, "full", work, None, program, None, line)


@pytest.mark.slow
@pytest.mark.libtpu
def test_held_out_text_has_to_fit_too(capsys):
    """By the compiler's word, with the moments beside it."""
    wide = [*SMALL, "--evaluation.batch-size"]
    assert run("cpt_1b", "v5e-4", "--json", *wide, "8192") == 0
    fits = json.loads(capsys.readouterr().out)["memory"]
    assert (
        2e9 < fits["evaluation"]["peak"] < fits["available"] and not fits["evaluation"]["refused"]
    )
    assert run("cpt_1b", "v5e-4", *wide, "40960") == NEGATIVE_RESULT
    told = capsys.readouterr().out
    assert "at least: the compiler refuses it" in told
    assert "first to try: --evaluation.batch-size 4: as many rows as a step" in told


@pytest.mark.libtpu
def test_a_small_step_is_planned(capsys):
    """Two layers of the 1B shape's kind on four chips: words, then the same in JSON."""
    assert run("cpt_1b", "v5e-4", "--json", *SMALL) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] and told["chips"] == 4 and told["mesh"]["fsdp"] == 4
    kinds = {one["kind"] for one in told["program"]["collectives"]}
    assert {"all-gather", "reduce-scatter"} <= kinds
    matrix = told["program"]["matrix"]
    assert set(matrix["by_kernel"]) == {"flash_attention_forward", "flash_attention_backward"}
    assert not matrix["unknown_kernels"] and not told["program"]["uncounted_loops"]
    assert 1.1 < matrix["total"] / told["model_flops"] < 1.5
    memory = told["memory"]
    assert memory["peak"] < memory["available"]
    # Weights and moments, and what a few rows take.
    assert 3 * memory["parameters"] < memory["evaluation"]["peak"] < memory["peak"]
