"""Vocabulary parallelism: each device of a group works on a part of a vocabulary table's rows.

A table (vocab, embed) is the embedding or the output matrix of a model. It is stored with its embed
dimension partitioned over the devices. If each device processed only its own tokens, it would
need to hold the whole table and the table's whole gradient in float32. Instead, the devices form
groups. Each device of a group gathers one part of the table's rows, called its share, and processes
the tokens of the whole group. No work is done twice, and exchanging the tokens moves fewer bytes
than gathering the remaining rows would.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from llama_cpt.parallel.mesh import partition_spec

# The mesh axes over which the two dimensions of a table are partitioned.
VOCAB_AXIS, EMBED_AXIS = partition_spec("vocab", "embed")


def one_device() -> bool:
    """Return whether the current mesh has one device, so that no collective is needed.

    On a CPU, XLA copies the operand of a collective even on one device. For a model of 135 million
    parameters, these copies took a tenth of the time of a training step.
    """
    return jax.sharding.get_abstract_mesh().size == 1


def psum(x: Float[Array, "*dims"], axes: str | tuple[str, ...]) -> Float[Array, "*dims"]:
    """Return the sum of ``x`` over the devices on the mesh axes ``axes``."""
    return x if one_device() else jax.lax.psum(x, axes)


@dataclass(frozen=True)
class VocabGroups:
    """Collectives for groups of devices. The rows of a table are divided among a group's devices.

    The groups partition the devices on the mesh axes of the table's embed dimension. ``devices`` is
    the number of these devices, and ``size`` is the number of devices per group. Within a group,
    device i holds the i-th share of the table's rows. Call the methods inside ``jax.shard_map``.
    """

    size: int
    devices: int

    @property
    def within_groups(self) -> list[list[int]]:
        """The device indices of each group. The devices of a group together hold all rows."""
        starts = range(0, self.devices, self.size)
        return [list(range(start, start + self.size)) for start in starts]

    @property
    def across_groups(self) -> list[list[int]]:
        """Lists of device indices. The devices in a list hold the same rows of the table."""
        return [list(range(rank, self.devices, self.size)) for rank in range(self.size)]

    def gather_rows(
        self, table: Float[Array, "vocab slice"], dtype: jnp.dtype
    ) -> Float[Array, "share embed"]:
        """Return this device's share of the rows with the whole embed dimension, in ``dtype``.

        ``table`` is the part of the table that this device stores: all rows, and a slice of the
        embed dimension.
        """
        # The cast comes first, so that the collectives move arrays of the compute type. The
        # all-to-all within a group leaves each device with its share of the rows and the embed
        # slices of its group. The all-gather across groups adds the remaining embed slices.
        x = table.astype(dtype)
        if one_device():
            return x
        x = jax.lax.all_to_all(
            x, EMBED_AXIS, 0, 1, axis_index_groups=self.within_groups, tiled=True
        )
        return jax.lax.all_gather(
            x, EMBED_AXIS, axis=1, axis_index_groups=self.across_groups, tiled=True
        )

    def scatter_rows(self, gradient: Float[Array, "share embed"]) -> Float[Array, "vocab slice"]:
        """Return the gradient of this device's stored part of the table.

        ``gradient`` is the gradient of this device's share of the rows, summed over the tokens of
        the device's group. The result is summed over all tokens. This method is the transpose of
        ``gather_rows``.
        """
        if one_device():
            return gradient
        x = jax.lax.psum_scatter(
            gradient,
            EMBED_AXIS,
            scatter_dimension=1,
            axis_index_groups=self.across_groups,
            tiled=True,
        )
        x = jax.lax.all_to_all(
            x, EMBED_AXIS, 1, 0, axis_index_groups=self.within_groups, tiled=True
        )
        # Replicas hold copies of the table and process different tokens.
        return jax.lax.psum(x, "replica")

    def gather_tokens(self, x: Shaped[Array, "own ..."]) -> Shaped[Array, "all ..."]:
        """Return the arrays ``x`` of all devices of the group, concatenated along dimension 0."""
        if one_device():
            return x
        return jax.lax.all_gather(x, EMBED_AXIS, axis_index_groups=self.within_groups, tiled=True)

    def scatter_tokens(self, x: Float[Array, "all ..."]) -> Float[Array, "own ..."]:
        """Sum ``x`` over all shares of the table, and return the sums for this device's tokens.

        ``x`` is the contribution of this device's share to all tokens of the group.
        """
        if one_device():
            return x
        x = jax.lax.psum_scatter(x, EMBED_AXIS, axis_index_groups=self.within_groups, tiled=True)
        return jax.lax.psum(x, VOCAB_AXIS)

    def local_tokens(self, x: Shaped[Array, "all ..."]) -> Shaped[Array, "own ..."]:
        """Return the part of ``x`` that belongs to this device's tokens.

        Dimension 0 of ``x`` contains all tokens of the group. ``x`` is equal on all devices of the
        group.
        """
        own = x.shape[0] // self.size
        return jax.lax.dynamic_slice_in_dim(x, self._rank() * own, own)

    def sum(self, x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Return the sum of ``x`` over the devices that together hold all rows of the table."""
        if one_device():
            return x
        return jax.lax.psum(
            jax.lax.psum(x, EMBED_AXIS, axis_index_groups=self.within_groups), VOCAB_AXIS
        )

    def max(self, x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Return the maximum of ``x`` over the devices that together hold all rows of the table."""
        if one_device():
            return x
        return jax.lax.pmax(
            jax.lax.pmax(x, EMBED_AXIS, axis_index_groups=self.within_groups), VOCAB_AXIS
        )

    def local_ids(self, tokens: Int[Array, "*dims"], rows: int) -> Int[Array, "*dims"]:
        """Return ``tokens`` as indices into the ``rows`` table rows that this device holds.

        If a different device holds the row of a token, the index is ``rows``, which is out of
        range.
        """
        ids = tokens - (jax.lax.axis_index(VOCAB_AXIS) * self.size + self._rank()) * rows
        return jnp.where((ids >= 0) & (ids < rows), ids, rows)

    def _rank(self) -> jax.Array:
        return jax.lax.axis_index(EMBED_AXIS) % self.size


def make_vocab_groups(rows: int, tokens: int) -> VocabGroups:
    """Return the largest groups that move at most as many bytes as groups of size 1.

    ``rows`` is the number of table rows on a device's tensor shard, and ``tokens`` is the number of
    tokens of one device. Call this function inside ``jax.shard_map``.
    """
    # In a group of g devices, each device gathers rows / g rows and g * tokens tokens, and scatters
    # as many. The size is a power of two that divides the number of devices and the number of rows.
    devices, size = jax.lax.axis_size(EMBED_AXIS), 2
    while not devices % size and not rows % size and rows // size + tokens * size <= rows:
        size *= 2
    return VocabGroups(size // 2, devices)
