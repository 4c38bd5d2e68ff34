"""A helper that splits packed rows into their segments."""

import numpy as np


def found_segments(row):
    """Return tokens, targets and loss mask of each segment; segments must be contiguous."""
    found = {}
    for number in range(1, int(row["segment_ids"].max()) + 1):
        columns = np.flatnonzero(row["segment_ids"] == number)
        assert np.array_equal(columns, np.arange(columns[0], columns[-1] + 1))
        fields = ("tokens", "targets", "loss_mask")
        found[number] = tuple(tuple(row[field][columns].tolist()) for field in fields)
    return found
