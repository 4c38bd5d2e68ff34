"""A step in eight bits, compiled for TPUs: all of the layers' products and nothing else."""

import pytest

from llama_cpt.config.loading import load_config
from llama_cpt.hardware.topologies import find_topology
from llama_cpt.model.flops import non_embedding_parameters
from llama_cpt.planning import compiling
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
    """By hand 8 operations a parameter and token, less the last product of each layer done again.

    The MLP is wide enough to have its backward pass in slices.
    """
    options = [*SMALL, "--compute.matmul-precision", precision]
    config = load_config(str(ROOT / "configs" / "cpt_1b.py"), options)
    program = topology_program(config, topology)
    matrix = compiling.compile_program(lower_program(config, program), program.mesh).program.matrix
    model, tokens = config.model, config.global_batch_size * config.data.sequence_length
    norms = (2 * model.num_layers + 1) * model.embed_dim
    last = model.num_layers * model.mlp_dim * model.embed_dim
    narrow = (8 * (non_embedding_parameters(model) - norms) - 2 * last) * tokens / 8
    head = 6 * model.vocab_size * model.embed_dim * tokens / 8
    assert matrix.narrow == {"s8" if precision == "int8" else "f8": narrow}
    # The compiler may make a small product of a sum.
    assert matrix.products == pytest.approx(narrow + head, rel=1e-6)
    chip = find_topology(topology).chip
    assert matrix.as_bfloat16(chip) == pytest.approx(matrix.total - narrow / 2)
