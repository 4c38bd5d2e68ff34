"""Vocabulary parallelism: the rows of a vocabulary table distributed over neighbors on the mesh.

A table (vocab, embed) is stored in slices of its embed dimension. A device that processed its own
tokens with the whole table would hold all of it, and all of its gradient in float32. Instead each
device of a group of neighbors takes a share of the rows and processes the tokens of the whole
group. Nothing is computed twice, and the tokens that are exchanged are fewer bytes than the rows
that are not. All methods run inside ``jax.shard_map``.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from llama_cpt.parallel.mesh import partition_spec

# The mesh axes of a table's two dimensions.
VOCAB_AXIS, EMBED_AXIS = partition_spec("vocab", "embed")


@dataclass(frozen=True)
class VocabGroups:
    """Groups of ``size`` successive devices among the ``devices`` on a table's embed axis."""

    size: int
    devices: int

    @property
    def within_groups(self) -> list[list[int]]:
        """The groups of neighbors, which hold all rows between them."""
        starts = range(0, self.devices, self.size)
        return [list(range(start, start + self.size)) for start in starts]

    @property
    def across_groups(self) -> list[list[int]]:
        """The groups of devices that have the same share of the rows."""
        return [list(range(rank, self.devices, self.size)) for rank in range(self.size)]

    def gather_rows(
        self, table: Float[Array, "vocab slice"], dtype: jnp.dtype
    ) -> Float[Array, "share embed"]:
        """Return this device's share of the rows, from every device's slice of all rows."""
        # Cast first, so that the collectives move the compute type. Within a group, rows are
        # exchanged for slices; across groups, the remaining slices of the share are gathered.
        x = table.astype(dtype)
        x = jax.lax.all_to_all(
            x, EMBED_AXIS, 0, 1, axis_index_groups=self.within_groups, tiled=True
        )
        return jax.lax.all_gather(
            x, EMBED_AXIS, axis=1, axis_index_groups=self.across_groups, tiled=True
        )

    def scatter_rows(self, gradient: Float[Array, "share embed"]) -> Float[Array, "vocab slice"]:
        """Return the sum of the gradients of all devices' shares, sharded like the table."""
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
        # Replicas hold copies of the table, so their gradients are summed.
        return jax.lax.psum(x, "replica")

    def gather_tokens(self, x: Shaped[Array, "own ..."]) -> Shaped[Array, "all ..."]:
        """Return the ``x`` of all devices of the group, concatenated."""
        return jax.lax.all_gather(x, EMBED_AXIS, axis_index_groups=self.within_groups, tiled=True)

    def scatter_tokens(self, x: Float[Array, "all ..."]) -> Float[Array, "own ..."]:
        """Return the sum of ``x`` over all rows, for this device's tokens."""
        x = jax.lax.psum_scatter(x, EMBED_AXIS, axis_index_groups=self.within_groups, tiled=True)
        return jax.lax.psum(x, VOCAB_AXIS)

    def local_tokens(self, x: Shaped[Array, "all ..."]) -> Shaped[Array, "own ..."]:
        """Return this device's tokens of ``x``, which all devices of the group hold."""
        own = x.shape[0] // self.size
        return jax.lax.dynamic_slice_in_dim(x, self._rank() * own, own)

    def sum(self, x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Return the sum of ``x`` over all rows."""
        return jax.lax.psum(
            jax.lax.psum(x, EMBED_AXIS, axis_index_groups=self.within_groups), VOCAB_AXIS
        )

    def max(self, x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Return the maximum of ``x`` over all rows."""
        return jax.lax.pmax(
            jax.lax.pmax(x, EMBED_AXIS, axis_index_groups=self.within_groups), VOCAB_AXIS
        )

    def local_ids(self, tokens: Int[Array, "*dims"], rows: int) -> Int[Array, "*dims"]:
        """Return ids within this device's ``rows``, or ``rows`` if another device has the token."""
        ids = tokens - (jax.lax.axis_index(VOCAB_AXIS) * self.size + self._rank()) * rows
        return jnp.where((ids >= 0) & (ids < rows), ids, rows)

    def _rank(self) -> jax.Array:
        return jax.lax.axis_index(EMBED_AXIS) % self.size


def make_vocab_groups(rows: int, tokens: int) -> VocabGroups:
    """Return the largest groups that move no more bytes than devices on their own would.

    Each of g neighbors gathers a g-th of the rows and g times the tokens, and scatters as many.
    ``rows`` and ``tokens`` are those of one device.
    """
    # The size is the largest power of two that divides devices and rows and still pays.
    devices, size = jax.lax.axis_size(EMBED_AXIS), 2
    while not devices % size and not rows % size and rows // size + tokens * size <= rows:
        size *= 2
    return VocabGroups(size // 2, devices)
