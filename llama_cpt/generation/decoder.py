"""A Llama arranged for generation: prefill of a batch of prompts, then one token at a time.

Prompts are padded on the right to a common length. Generated tokens go into the columns after it,
the same column for every row, so that each step writes one slice of the cache. The columns between
a short prompt and these are masked; positions count tokens, not columns.

Layers are separate rather than stacked: a loop over a stack copies a layer's weights before each
use, and for a single token that is most of the work.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from llama_cpt.data.batch import Leaf
from llama_cpt.model.attention import attend
from llama_cpt.model.llama import Block, Llama, rms_norm
from llama_cpt.parallel.mesh import constrain, shardings

Layer = tuple[Leaf, Leaf]
"""Keys and values of one layer, each (batch, kv_heads, columns, head_dim)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoder:
    """The weights of a model in its compute type, layer by layer."""

    ends: Llama
    """A model with the embedding, the last norm and the output matrix, but no layers."""
    layers: tuple[Block, ...]
    """The parameters of each layer."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens read so far, and the columns that each row attends to."""

    layers: tuple[Layer, ...]
    visible: Leaf
    """bool (batch, columns)."""
    lengths: Leaf
    """int32 (batch,): number of tokens in each row, which is the position of its next token."""
    column: Leaf
    """int32: the column of every row's next token."""


def make_decoder(model: Llama, mesh: Mesh | None = None) -> Decoder:
    """Return a copy of ``model``'s weights in its compute type, layer by layer, sharded as before.

    ``mesh`` is the mesh of ``model``; None means one device. Raises ValueError for a mesh with a
    context axis.
    """
    if mesh is not None and mesh.shape["context"] > 1:
        raise ValueError("generation needs whole rows; set the mesh's context axis to 1")
    placed = None if mesh is None else shardings(jax.eval_shape(decoder_from_model, model), mesh)
    return jax.jit(decoder_from_model, out_shardings=placed)(model)


def decoder_from_model(model: Llama) -> Decoder:
    """Return the decoder of ``model``, for use inside a compiled program."""
    # tree.map copies the tree, so that the caller's model keeps its layers.
    ends = jax.tree.map(lambda x: x.astype(model.compute_dtype), model)
    stacked, ends.layers = ends.layers, None

    def one(layer: int, parameter: nnx.Param) -> nnx.Param:
        return nnx.Param(parameter[...][layer], axes=parameter.get_metadata("axes")[1:])

    layers = tuple(
        jax.tree.map(partial(one, layer), stacked, is_leaf=lambda node: isinstance(node, nnx.Param))
        for layer in range(model.config.num_layers)
    )
    return Decoder(ends, layers)


def prefill(
    decoder: Decoder,
    tokens: Int[Array, "batch length"],
    lengths: Int[Array, " batch"],
    *,
    columns: int,
) -> tuple[Float[Array, "batch length embed"], Cache]:
    """Read prompts of ``lengths`` tokens, padded on the right, into a cache of ``columns``.

    Returns the normalized output at every token, for ``compute_logits``, and the cache.
    """
    length = tokens.shape[1]
    index = jnp.arange(length)[None]
    # Padding is segment 0, which no other token attends to.
    segment_ids = (index < lengths[:, None]).astype(jnp.int32)

    def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple:
        out = attend(query, key, value, segment_ids, implementation=decoder.ends.attention)
        return out, tuple(_in_cache(x, columns) for x in (key, value))

    positions = jnp.broadcast_to(index, tokens.shape)
    x, layers = run_decoder_layers(decoder, tokens, positions, [attention] * len(decoder.layers))
    visible = jnp.arange(columns)[None] < lengths[:, None]
    return x, Cache(layers, visible, lengths, jnp.int32(length))


def decode(
    decoder: Decoder, cache: Cache, tokens: Int[Array, " batch"]
) -> tuple[Float[Array, "batch embed"], Cache]:
    """Read one more token of each row; return its normalized output and the extended cache."""
    here = jnp.arange(cache.visible.shape[1])[None] == cache.column
    visible = cache.visible | here

    def attention_of(keys: jax.Array, values: jax.Array) -> Callable:
        def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple:
            # All rows write to the same column, so that this is one slice and no scatter.
            start = (0, 0, cache.column, 0)
            kept = tuple(
                _placed(jax.lax.dynamic_update_slice(old, new.swapaxes(1, 2), start))
                for old, new in ((keys, key), (values, value))
            )
            return attend_to_cache(query, *kept, visible), kept

        return attention

    attentions = [attention_of(*layer) for layer in cache.layers]
    x, layers = run_decoder_layers(decoder, tokens[:, None], cache.lengths[:, None], attentions)
    return x[:, 0], Cache(layers, visible, cache.lengths + 1, cache.column + 1)


def compute_logits(
    decoder: Decoder, hidden: Float[Array, "batch embed"]
) -> Float[Array, "batch vocab"]:
    """Return the float32 logits of normalized outputs."""
    return jnp.einsum("bd,vd->bv", hidden, decoder.ends.head, preferred_element_type=jnp.float32)


def attend_to_cache(
    query: Float[Array, "batch 1 heads head_dim"],
    keys: Float[Array, "batch kv_heads columns head_dim"],
    values: Float[Array, "batch kv_heads columns head_dim"],
    visible: Bool[Array, "batch columns"],
) -> Float[Array, "batch 1 heads head_dim"]:
    """Attend from one query per row to its visible columns, as in ``pallas_kernels.reference``."""
    batch, _, heads, head_dim = query.shape
    # Query heads that share a key-value head are grouped, so that keys are never repeated.
    grouped = query.reshape(batch, keys.shape[1], -1, head_dim)
    scores = jnp.einsum("bkgh,bksh->bkgs", grouped, keys, preferred_element_type=jnp.float32)
    hidden = jnp.where(visible, 0.0, -jnp.inf)[:, None, None]
    weights = jax.nn.softmax(scores * head_dim**-0.5 + hidden, axis=-1).astype(values.dtype)
    out = jnp.einsum("bkgs,bksh->bkgh", weights, values, preferred_element_type=jnp.float32)
    return out.reshape(batch, 1, heads, head_dim).astype(query.dtype)


def run_decoder_layers(
    decoder: Decoder, tokens: jax.Array, positions: jax.Array, attentions: list[Callable]
) -> tuple[jax.Array, tuple[Any, ...]]:
    """Run all layers and the last norm; return the output and the cache entry of each attention."""
    ends = decoder.ends
    x, rotation = ends.embed(tokens, positions)
    kept = []
    for block, attention in zip(decoder.layers, attentions, strict=True):
        x, layer = ends.layer(rotation, attention, x, block)
        kept.append(layer)
    return rms_norm(x, ends.norm[...], eps=ends.config.norm_eps), tuple(kept)


def _in_cache(x: jax.Array, columns: int) -> jax.Array:
    """Return keys or values (batch, length, kv_heads, head_dim) as the start of a layer's cache."""
    padding = [(0, 0), (0, 0), (0, columns - x.shape[1]), (0, 0)]
    return _placed(jnp.pad(x.swapaxes(1, 2), padding))


def _placed(x: jax.Array) -> jax.Array:
    return constrain(x, "batch", "kv_heads", "length", None)
