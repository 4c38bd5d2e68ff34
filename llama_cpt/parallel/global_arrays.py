"""Construction of global arrays from the NumPy arrays that each process holds."""

from typing import Any

import jax
from jaxtyping import Int64
import numpy as np


def local_rows(sharding: jax.NamedSharding, rows: int) -> Int64[np.ndarray, " rows_here"]:
    """Return the sorted numbers of a micro-batch's rows that this process's devices hold.

    ``sharding`` places arrays of shape (micro-batches, ``rows``, ...). Together the processes hold
    all rows. A row that is split over ``context`` or ``tensor`` is held by every process that has
    a part of it.
    """
    by_row = jax.NamedSharding(sharding.mesh, jax.P(sharding.spec[1]))
    slices = by_row.devices_indices_map((rows,))
    held = [np.arange(rows)[index] for device, index in slices.items() if _is_own(device)]
    return np.unique(np.concatenate(held)).astype(np.int64)


def _is_own(device: jax.Device) -> bool:
    return device.process_index == jax.process_index()


class RowPlacement:
    """The rows of a micro-batch that this process holds, and the placement of batches of them.

    ``sharding`` and ``rows`` are those of ``local_rows``. Which rows lie where depends on the mesh
    alone and visits every device of it, so a run constructs one instance and uses it for all
    batches.
    """

    def __init__(self, sharding: jax.NamedSharding, rows: int) -> None:
        self._sharding, self._rows = sharding, rows
        self.local_rows = local_rows(sharding, rows)
        """Sorted row numbers, int64."""
        # Row number -> position among the local rows. The entries of other processes' rows are
        # never read: JAX requests only the shards of this process's devices.
        self._positions = np.full(rows, -1, np.int64)
        self._positions[self.local_rows] = np.arange(self.local_rows.size)

    def to_global(self, batch: Any) -> Any:
        """Return ``batch`` as global arrays (micro-batches, rows, ...).

        Leaves are NumPy arrays (micro-batches, local rows, ...), in the order of ``local_rows``.
        """
        return jax.tree.map(self._to_global, batch)

    def _to_global(self, field: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...]) -> np.ndarray:
            positions = self._positions[index[1]]
            return field[index[0], positions][(slice(None), slice(None), *index[2:])]

        shape = (field.shape[0], self._rows, *field.shape[2:])
        return jax.make_array_from_callback(shape, self._sharding, shard)


def from_replicated(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Return global arrays for a tree of NumPy arrays that every process holds in full."""

    def place(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree)
