"""Training steps and reference programs compile for TPUs with the compiler options."""

from dataclasses import replace
import re

import jax
import pytest

from llama_cpt.config.schema import (
    ChatConfig,
    ComputeConfig,
    EvaluationConfig,
    MeshConfig,
    PreferenceConfig,
)
from llama_cpt.hardware.chips import CHIPS
from llama_cpt.model import scan_layers
from llama_cpt.planning import compiling
from llama_cpt.training.lowering import lower_program, lower_reference, topology_program
from llama_cpt.training.program import TPU_OPTIONS

pytestmark = pytest.mark.libtpu

MEMORY = {chip.name: chip.memory_bytes for chip in CHIPS.values()}


def compile_for(config, topology: str, lower=lower_program) -> None:
    program = topology_program(config, topology)
    compiled = compiling.compile_program(lower(config, program), program.mesh)
    assert not isinstance(compiled, compiling.OutOfMemory)
    peak = compiled.peak
    assert 0 < peak < MEMORY[topology.split(":")[0]], f"{peak / 2**30:.1f} GiB"


@pytest.fixture
def tiny(make_config, tmp_path):
    return make_config(
        tmp_path,
        mesh=MeshConfig(1, 4, 1),
        global_batch_size=8,
        microbatch_size=4,
        compute=ComputeConfig(attention="reference", loss_chunk_tokens=24),
        evaluation=EvaluationConfig(batch_size=4),
    )


def test_step_compiles(tiny):
    compile_for(tiny, "v5e:2x2")


def test_overlap_options_reach_the_compiler(tiny, monkeypatch):
    """XLA rejects unknown options, so an error shows that the options reach the compiler."""
    monkeypatch.setitem(TPU_OPTIONS, "xla_tpu_overlap_nothing_at_all", True)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_tpu_overlap_nothing_at_all"):
        compiling.compile_with_text(lower_program(tiny, topology_program(tiny, "v5e:2x2")))


def test_attention_has_one_kernel_forward(tiny):
    """Rematerialization traces the layer again, but must not create a different kernel."""
    config = replace(
        tiny,
        model=replace(
            tiny.architecture, num_layers=scan_layers.DEEP, head_dim=64, context_length=128
        ),
        data=replace(tiny.data, sequence_length=128),
        compute=replace(tiny.compute, attention="pallas", remat="full"),
    )
    text = lower_program(config, topology_program(config, "v5e:2x2")).as_text()
    kernels = [line for line in text.splitlines() if "flash_attention_forward" in line]
    bodies = [body for line in kernels for body in re.findall(r'body[^A-Za-z]*([^"\\]*)', line)[:1]]
    assert len(bodies) == len(kernels) > 1 and len(set(bodies)) == 1 and len(bodies[0]) > 1000


def test_preference_programs_compile(tiny):
    data = replace(tiny.data, chat=ChatConfig())
    config = replace(tiny, data=data, objective=PreferenceConfig(loss="kto"))
    compile_for(config, "v5e:2x2")
    compile_for(config, "v5e:2x2", lower_reference)
