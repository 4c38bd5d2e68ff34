"""Tests of the placement of each process's rows in global arrays."""

import jax
import numpy as np

from llama_cpt.parallel import global_arrays
from llama_cpt.parallel.global_arrays import RowPlacement


def test_row_map_is_computed_once_for_all_batches(monkeypatch):
    """Only the constructor checks which devices belong to this process."""
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"))
    sharding = jax.NamedSharding(mesh, jax.P(None, "fsdp", "tensor"))
    visited, real = [], global_arrays._is_own
    monkeypatch.setattr(global_arrays, "_is_own", lambda d: (visited.append(d), real(d))[1])
    placement = RowPlacement(sharding, 8)
    assert len(visited) == mesh.size
    for start in (0, 96):
        batch = {"a": np.arange(start, start + 96).reshape(2, 8, 6)}
        placed = placement.to_global(batch)["a"]
        np.testing.assert_array_equal(placed, batch["a"])
        assert placed.sharding == sharding
    assert len(visited) == mesh.size


def test_positions_follow_the_local_rows(monkeypatch):
    """A process with every second device loads every second pair of rows."""
    mesh = jax.make_mesh((8, 1), ("fsdp", "tensor"))
    sharding = jax.NamedSharding(mesh, jax.P(None, "fsdp", "tensor"))
    monkeypatch.setattr(global_arrays, "_is_own", lambda device: device.id % 2 == 1)
    placement = RowPlacement(sharding, 16)
    rows = placement.local_rows
    assert rows.tolist() == [2, 3, 6, 7, 10, 11, 14, 15]
    np.testing.assert_array_equal(placement._positions[rows], np.arange(8))
    assert (np.delete(placement._positions, rows) == -1).all()
