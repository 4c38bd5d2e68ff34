"""Tests of 8-bit steps compiled for TPUs: all products of the layers are 8-bit, and no others."""

import pytest

from llama_cpt.config.loading import load_config
from llama_cpt.hardware.topologies import find_topology
from llama_cpt.model.flops import non_embedding_parameters
from llama_cpt.planning import compiling
from llama_cpt.planning.compiling import CompiledProgram
from llama_cpt.training.lowering import lower_program, topology_program
from tests.conftest import ROOT

SMALL = (
    "--model.num-layers 2 --model.embed-dim 512 --model.mlp-dim 8192 --model.num-heads 4 "
    "--model.num-kv-heads 2 --model.head-dim 128 --model.vocab-size 1024 "
    "--data.sequence-length 512 --global-batch-size 8"
).split()


@pytest.mark.slow
@pytest.mark.libtpu
@pytest.mark.parametrize(
    ("topology", "precision"), [("v5e:2x4", "int8"), ("v6e:2x4", "int8"), ("tpu7x:2x2x1", "fp8")]
)
def test_products_of_the_layers_are_narrow(topology, precision):
    """Compare with 8 operations per parameter and token, the analytic count with remat.

    The last product of each layer is not recomputed, which is subtracted. The MLP is wide enough
    for a backward pass in slices.
    """
    options = [*SMALL, "--compute.matmul-precision", precision]
    config = load_config(str(ROOT / "configs" / "llama3" / "cpt_1b.py"), options)
    program = topology_program(config, topology)
    compiled = compiling.compile_program(lower_program(config, program), program.mesh)
    assert isinstance(compiled, CompiledProgram)
    matrix = compiled.program.matrix
    model, tokens = config.architecture, config.global_batch_size * config.data.sequence_length
    norms = (2 * model.num_layers + 1) * model.embed_dim
    last = model.num_layers * model.mlp_dim * model.embed_dim
    narrow = (8 * (non_embedding_parameters(model) - norms) - 2 * last) * tokens / 8
    head = 6 * model.vocab_size * model.embed_dim * tokens / 8
    assert matrix.narrow == {"s8" if precision == "int8" else "f8": narrow}
    # The compiler can turn a sum into a small product.
    assert matrix.products == pytest.approx(narrow + head, rel=1e-6)
    chip = find_topology(topology).chip
    assert matrix.as_bfloat16(chip) == pytest.approx(matrix.total - narrow / 2)
