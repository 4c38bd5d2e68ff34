"""The rows of a vocabulary table shared out among neighbours on the mesh.

A table (vocab, embed) is stored in slices of its embed dim. A device that worked through the whole
of it for its own tokens would hold it all, and all of its gradient in float32. Instead neighbours
take a share of the rows each, and each works on the tokens of all of them: nothing is computed
twice, and the tokens that move weigh less than the rows that do not. All of this runs inside
``jax.shard_map``.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from llama_cpt.parallel.mesh import partition_spec

# Where a table's two dims lie (sharding.AXIS_RULES).
VOCAB_AXIS, EMBED_AXIS = partition_spec("vocab", "embed")


@dataclass(frozen=True)
class VocabGroups:
    """``size`` successive devices of the ``devices`` on a table's embed axis."""

    size: int
    devices: int

    @property
    def within_groups(self) -> list[list[int]]:
        """Groups with all rows between them."""
        starts = range(0, self.devices, self.size)
        return [list(range(start, start + self.size)) for start in starts]

    @property
    def across_groups(self) -> list[list[int]]:
        """Groups with the same share of the rows."""
        return [list(range(rank, self.devices, self.size)) for rank in range(self.size)]

    def gather_rows(
        self, table: Float[Array, "vocab slice"], dtype: jnp.dtype
    ) -> Float[Array, "share embed"]:
        """This device's share of the rows, from every device's slice of all rows."""
        x = table.astype(dtype)
        x = jax.lax.all_to_all(
            x, EMBED_AXIS, 0, 1, axis_index_groups=self.within_groups, tiled=True
        )
        return jax.lax.all_gather(
            x, EMBED_AXIS, axis=1, axis_index_groups=self.across_groups, tiled=True
        )

    def scatter_rows(self, gradient: Float[Array, "share embed"]) -> Float[Array, "vocab slice"]:
        """The gradient of such shares, added up and placed as the table is stored."""
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
        return jax.lax.psum(x, "replica")

    def gather_tokens(self, x: Shaped[Array, "own ..."]) -> Shaped[Array, "all ..."]:
        """The neighbours' ``x``, one after the other."""
        return jax.lax.all_gather(x, EMBED_AXIS, axis_index_groups=self.within_groups, tiled=True)

    def scatter_tokens(self, x: Float[Array, "all ..."]) -> Float[Array, "own ..."]:
        """Of this device's tokens, what ``x`` adds up to over all rows."""
        x = jax.lax.psum_scatter(x, EMBED_AXIS, axis_index_groups=self.within_groups, tiled=True)
        return jax.lax.psum(x, VOCAB_AXIS)

    def local_tokens(self, x: Shaped[Array, "all ..."]) -> Shaped[Array, "own ..."]:
        """This device's part of what all neighbours know."""
        own = x.shape[0] // self.size
        return jax.lax.dynamic_slice_in_dim(x, self._rank() * own, own)

    def sum(self, x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Over all rows."""
        return jax.lax.psum(
            jax.lax.psum(x, EMBED_AXIS, axis_index_groups=self.within_groups), VOCAB_AXIS
        )

    def max(self, x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Over all rows."""
        return jax.lax.pmax(
            jax.lax.pmax(x, EMBED_AXIS, axis_index_groups=self.within_groups), VOCAB_AXIS
        )

    def local_ids(self, tokens: Int[Array, "*dims"], rows: int) -> Int[Array, "*dims"]:
        """Ids within this device's ``rows``; ``rows`` where another has the token."""
        ids = tokens - (jax.lax.axis_index(VOCAB_AXIS) * self.size + self._rank()) * rows
        return jnp.where((ids >= 0) & (ids < rows), ids, rows)

    def _rank(self) -> jax.Array:
        return jax.lax.axis_index(EMBED_AXIS) % self.size


def make_vocab_groups(rows: int, tokens: int) -> VocabGroups:
    """As many as move no more bytes than each device's ``rows`` and ``tokens`` on its own would.

    Each of g neighbours gathers a g-th of the rows and g times the tokens, and scatters as much.
    """
    devices, size = jax.lax.axis_size(EMBED_AXIS), 2
    while not devices % size and not rows % size and rows // size + tokens * size <= rows:
        size *= 2
    return VocabGroups(size // 2, devices)
