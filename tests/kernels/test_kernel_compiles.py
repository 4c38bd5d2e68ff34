"""Tests that the kernels compile for every TPU: interpret mode accepts kernels that do not."""

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt.planning import compiling
from llama_cpt.planning.compiling import CompiledProgram
from pallas_kernels.block_sizes import OF_DEVICE_KIND, current_block_sizes
from pallas_kernels.flash_attention import flash_attention

pytestmark = pytest.mark.libtpu

TOPOLOGY = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
LENGTHS = (2048, 8192, 32768, 131072)
# Cases that cover each chip and each head size, with short rows and few heads to save time.
COVERING = [
    ("v5e", 2048, 64, (4, 2)),
    ("v5p", 8192, 128, (2, 1)),
    ("v6e", 8192, 128, (2, 1)),
    ("tpu7x", 2048, 128, (2, 1)),
]
# Head sizes and numbers of heads of Llama 1B, 3B, 8B and 70B. A Latin square pairs every chip with
# every length, and every chip and every length with each of these, in a quarter of all
# combinations.
KINDS = [(64, (32, 8)), (128, (24, 8)), (128, (32, 8)), (128, (64, 8))]
ALL = [
    (chip, length, *KINDS[(row + column) % len(KINDS)])
    for row, chip in enumerate(TOPOLOGY)
    for column, length in enumerate(LENGTHS)
]


def compile_attention(chip: str, length: int, head_dim: int, heads: tuple[int, int]) -> None:
    devices = topologies.get_topology_desc(TOPOLOGY[chip], platform="tpu").devices
    mesh = jax.sharding.Mesh(np.array(devices[:1]), ("x",))
    place = jax.NamedSharding(mesh, jax.P())

    def operand(count: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, length, count, head_dim), jnp.bfloat16, sharding=place)

    def loss(query, key, value, segment_ids):
        assert current_block_sizes() == OF_DEVICE_KIND[devices[0].device_kind]
        return flash_attention(query, key, value, segment_ids).astype(jnp.float32).sum()

    ids = jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=place)
    query, key = (operand(count) for count in heads)
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(query, key, key, ids)
        made = compiling.compile_program(lowered, mesh)
    assert isinstance(made, CompiledProgram)
    assert len(made.program.matrix.by_kernel) == 2 and not made.program.matrix.unknown_kernels


@pytest.mark.parametrize(("chip", "length", "head_dim", "heads"), COVERING)
def test_kernels_compile_for_each_chip(chip, length, head_dim, heads):
    compile_attention(chip, length, head_dim, heads)


@pytest.mark.slow
@pytest.mark.parametrize(("chip", "length", "head_dim", "heads"), ALL)
def test_kernels_compile_for_each_chip_length_and_head_size(chip, length, head_dim, heads):
    compile_attention(chip, length, head_dim, heads)
