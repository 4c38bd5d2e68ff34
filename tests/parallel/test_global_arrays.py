"""Global arrays are built from this process's rows, whose numbers are computed once."""

import jax
import numpy as np

from llama_cpt.parallel import global_arrays
from llama_cpt.parallel.global_arrays import from_local_rows, local_rows


def test_batches_of_one_sharding_compute_the_row_numbers_once(monkeypatch):
    calls = []

    def counted(sharding: jax.NamedSharding, rows: int) -> np.ndarray:
        calls.append(rows)
        return local_rows(sharding, rows)

    monkeypatch.setattr(global_arrays, "local_rows", counted)
    sharding = jax.NamedSharding(jax.make_mesh((8,), ("fsdp",)), jax.P(None, "fsdp", None))
    for rows in (16, 24, 16, 24, 16):
        batch = np.arange(2 * rows * 3).reshape(2, rows, 3)
        placed = from_local_rows(batch, rows, sharding)
        np.testing.assert_array_equal(placed, batch)
    assert calls == [16, 24]
