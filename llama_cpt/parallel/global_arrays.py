"""Construction of global JAX arrays from the NumPy arrays in each process."""

from typing import Any

import jax
from jaxtyping import Int64
import numpy as np


def local_rows(sharding: jax.NamedSharding, rows: int) -> Int64[np.ndarray, " rows_here"]:
    """Return the sorted indices of the rows of a micro-batch that this process must load.

    ``sharding`` is the sharding of arrays of shape (micro-batches, ``rows``, ...). A process loads
    a row if at least one of its devices stores a part of the row. Several processes load the same
    row if the row is partitioned over ``context`` or replicated over ``tensor``.
    """
    by_row = jax.NamedSharding(sharding.mesh, jax.P(sharding.spec[1]))
    slices = by_row.devices_indices_map((rows,))
    held = [np.arange(rows)[index] for device, index in slices.items() if _is_own(device)]
    return np.unique(np.concatenate(held)).astype(np.int64)


def _is_own(device: Any) -> bool:
    return device.process_index == jax.process_index()


class RowPlacement:
    """The micro-batch rows of this process, and a method that assembles global batches from them.

    ``sharding`` and ``rows`` are the arguments of ``local_rows``. Construct one instance per run,
    because the constructor iterates over all devices of the mesh, and its result is the same for
    all batches.
    """

    def __init__(self, sharding: jax.NamedSharding, rows: int) -> None:
        self._sharding, self._rows = sharding, rows
        self.local_rows = local_rows(sharding, rows)
        """Sorted indices of the rows that this process loads, int64."""
        # Maps a row to its position in ``local_rows``. Rows of other processes have position -1,
        # which is never used, because JAX requests only the shards of this process's devices.
        self._positions = np.full(rows, -1, np.int64)
        self._positions[self.local_rows] = np.arange(self.local_rows.size)

    def to_global(self, batch: Any) -> Any:
        """Return global arrays of shape (micro-batches, rows, ...) for the pytree ``batch``.

        The leaves of ``batch`` are NumPy arrays of shape (micro-batches, local rows, ...), with the
        rows in the order of ``local_rows``.
        """
        return jax.tree.map(self._to_global, batch)

    def _to_global(self, field: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            positions = self._positions[index[1]]
            return field[index[0], positions][(slice(None), slice(None), *index[2:])]

        shape = (field.shape[0], self._rows, *field.shape[2:])
        return jax.make_array_from_callback(shape, self._sharding, shard)


def from_replicated(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Return global arrays for the NumPy arrays in ``tree``, which are equal in all processes."""

    def place(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree)
