"""Tests of meshes: they follow the links and slices, and wrong configs raise UserError."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from llama_cpt.config.schema import MeshConfig
from llama_cpt.parallel.mesh import make_mesh, topology_mesh
from llama_cpt.planning import compiling
from llama_cpt.planning.compiling import CompiledProgram
from llama_cpt.runtime.errors import UserError


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            MeshConfig(context=3),
            r"mesh\(replica=1, fsdp=-1, context=3, tensor=1\) does not divide 8",
        ),
        (MeshConfig(fsdp=2, context=2), "uses 4 of 8 devices; set one axis to -1"),
        (MeshConfig(context=-1), "use -1 for one axis"),
        (MeshConfig(context=0), "use -1 for one axis"),
    ],
)
def test_mesh_that_does_not_fit_is_rejected(config, message):
    with pytest.raises(UserError, match=message):
        make_mesh(config)


@pytest.mark.parametrize(
    ("config", "fsdp"),
    [
        (MeshConfig(fsdp=4, context=2), 8),
        (MeshConfig(context=8), -1),
        (MeshConfig(fsdp=2, tensor=2, context=-1), -1),
    ],
)
def test_whole_rows_config_uses_the_same_devices(config, fsdp):
    whole = config.without_context
    assert whole == replace(config, fsdp=fsdp, context=1)
    assert make_mesh(whole).size == make_mesh(config).size == 8


@pytest.mark.libtpu
def test_each_slice_is_one_replica():
    mesh = topology_mesh(MeshConfig(replica=2, fsdp=2, context=2), "v5e:2x2", slices=2)
    assert dict(mesh.shape) == {"replica": 2, "fsdp": 2, "context": 2, "tensor": 1}
    for number, replica in enumerate(mesh.devices):
        assert {device.slice_index for device in replica.flat} == {number}
    # The same chips in the same places on every slice.
    assert [d.coords for d in mesh.devices[0].flat] == [d.coords for d in mesh.devices[1].flat]
    for config in (MeshConfig(), MeshConfig(replica=4)):
        with pytest.raises(UserError, match="on 2 slices: set mesh.replica=2"):
            topology_mesh(config, "v5e:2x2", slices=2)


@pytest.mark.libtpu
def test_mesh_axis_can_take_part_of_a_torus_axis():
    """On 4 x 4 x 4 chips, each row of an 8 x 8 mesh is a box of 8 adjacent chips."""
    mesh = topology_mesh(MeshConfig(fsdp=8, context=8), "v5p:4x4x4")
    rows = [np.array([device.coords for device in row]) for row in mesh.devices[0, :, :, 0]]
    for row in rows:
        assert np.prod(np.ptp(row, axis=0) + 1) == 8


@pytest.mark.libtpu
@pytest.mark.parametrize("topology", ["v5p:4x4x8", "v6e:16x16"])
def test_topology_has_wrap_around_links(topology):
    """Without wrap-around links, the compiler replaces an all-gather by all-reduces."""
    mesh = topology_mesh(MeshConfig(), topology)
    placed, whole = (NamedSharding(mesh, PartitionSpec(axis)) for axis in ("fsdp", None))
    gather = jax.jit(lambda weights: weights * 1, in_shardings=placed, out_shardings=whole)
    lowered = gather.lower(jax.ShapeDtypeStruct((8192, 1024), jnp.bfloat16))
    compiled = compiling.compile_program(lowered, mesh)
    assert isinstance(compiled, CompiledProgram)
    assert {one.kind for one in compiled.program.collectives} == {"all-gather"}
