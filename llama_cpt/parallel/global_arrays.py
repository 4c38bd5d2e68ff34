"""Global arrays, of which each process holds the parts of its own devices."""

from typing import Any

import jax
from jaxtyping import Int64
import numpy as np


def local_rows(sharding: jax.NamedSharding, rows: int) -> Int64[np.ndarray, " rows_here"]:
    """Which of a micro-batch's ``rows`` this process's devices hold: sorted row numbers.

    ``sharding`` places arrays (micro-batches, rows, ...). Together the processes hold all rows;
    those whose devices share a row, along ``tensor``, each hold it.
    """
    by_row = jax.NamedSharding(sharding.mesh, jax.P(sharding.spec[1]))
    places = by_row.devices_indices_map((rows,))
    held = [np.arange(rows)[index] for device, index in places.items() if _is_own(device)]
    return np.unique(np.concatenate(held)).astype(np.int64)


def _is_own(device: jax.Device) -> bool:
    return device.process_index == jax.process_index()


def from_local_rows(batch: Any, rows: int, sharding: jax.NamedSharding) -> Any:
    """Global arrays (micro-batches, ``rows``, ...) from arrays of ``local_rows`` alone."""
    here = local_rows(sharding, rows)

    def place(field: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            numbers = np.searchsorted(here, np.arange(rows)[index[1]])
            return field[index[0], numbers][(slice(None), slice(None), *index[2:])]

        shape = (field.shape[0], rows, *field.shape[2:])
        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(place, batch)


def from_replicated(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Global arrays from NumPy arrays that every process has whole."""

    def place(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree)
