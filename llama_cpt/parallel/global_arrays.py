"""Global arrays, of which each process holds the parts on its own devices."""

import functools
from typing import Any

import jax
from jaxtyping import Int64
import numpy as np


def local_rows(sharding: jax.NamedSharding, rows: int) -> Int64[np.ndarray, " rows_here"]:
    """Return the sorted numbers of the rows of a micro-batch that this process's devices hold.

    ``sharding`` places arrays (micro-batches, rows, ...). Together the processes hold all ``rows``.
    Processes whose devices share a row, along ``tensor`` or ``context``, each hold it.
    """
    by_row = jax.NamedSharding(sharding.mesh, jax.P(sharding.spec[1]))
    indices = by_row.devices_indices_map((rows,))
    held = [np.arange(rows)[index] for device, index in indices.items() if _is_own(device)]
    return np.unique(np.concatenate(held)).astype(np.int64)


def _is_own(device: jax.Device) -> bool:
    return device.process_index == jax.process_index()


@functools.lru_cache(maxsize=16)
def _kept_local_rows(sharding: jax.NamedSharding, rows: int) -> Int64[np.ndarray, " rows_here"]:
    """Return ``local_rows``, computed once because every batch of a run needs the same rows."""
    numbers = local_rows(sharding, rows)
    numbers.setflags(write=False)
    return numbers


def from_local_rows(batch: Any, rows: int, sharding: jax.NamedSharding) -> Any:
    """Return global arrays (micro-batches, ``rows``, ...) from arrays of ``local_rows`` only."""
    local = _kept_local_rows(sharding, rows)

    def place(field: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            # JAX requests rows by their global numbers; the arrays hold this process's rows only.
            numbers = np.searchsorted(local, np.arange(rows)[index[1]])
            return field[index[0], numbers][(slice(None), slice(None), *index[2:])]

        shape = (field.shape[0], rows, *field.shape[2:])
        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(place, batch)


def from_replicated(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Return global arrays from NumPy arrays that every process holds in full."""

    def place(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree)
