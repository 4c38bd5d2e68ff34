"""A Llama laid out for generation: prefill of a batch of prompts, then a token at a time.

Prompts are padded on the right to a common length; what is generated goes into the columns behind
it, the same for every row, so that one slice of the cache is written a step. Between a short
prompt and these columns lie columns that nobody sees; positions count tokens, not columns.

Layers are apart from each other, not stacked: a loop over a stack copies a layer's weights before
each use, and for one token that is most of the work.
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
    """Weights in the compute type."""

    ends: Llama
    """The embedding, the last norm and the output matrix; it has no layers."""
    layers: tuple[Block, ...]
    """One layer's parameters each."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of what was read so far, and which of it each row sees."""

    layers: tuple[Layer, ...]
    visible: Leaf
    """bool (batch, columns)."""
    lengths: Leaf
    """int32 (batch,): tokens of each row, the position of its next token."""
    column: Leaf
    """int32: where the next token of every row goes."""


def make_decoder(model: Llama, mesh: Mesh | None = None) -> Decoder:
    """A copy of ``model``'s weights in its compute type, layer by layer, placed as they are.

    ``mesh`` is the one that ``model`` lies on; None is one device.
    """
    if mesh is not None and mesh.shape["context"] > 1:
        raise ValueError("generation takes whole rows: no mesh with a context axis")
    placed = None if mesh is None else shardings(jax.eval_shape(decoder_from_model, model), mesh)
    return jax.jit(decoder_from_model, out_shardings=placed)(model)


def decoder_from_model(model: Llama) -> Decoder:
    """``make_decoder`` inside a compiled program."""
    # A tree of its own: the caller's model keeps its layers.
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
    """Read prompts padded on the right, each of ``lengths`` tokens, into a cache of ``columns``.

    The result beside the cache is the normed output at every token, for ``compute_logits``.
    """
    length = tokens.shape[1]
    place = jnp.arange(length)[None]
    segment_ids = (place < lengths[:, None]).astype(jnp.int32)

    def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple:
        out = attend(query, key, value, segment_ids, implementation=decoder.ends.attention)
        return out, tuple(_in_cache(x, columns) for x in (key, value))

    positions = jnp.broadcast_to(place, tokens.shape)
    x, layers = run_decoder_layers(decoder, tokens, positions, [attention] * len(decoder.layers))
    visible = jnp.arange(columns)[None] < lengths[:, None]
    return x, Cache(layers, visible, lengths, jnp.int32(length))


def decode(
    decoder: Decoder, cache: Cache, tokens: Int[Array, " batch"]
) -> tuple[Float[Array, "batch embed"], Cache]:
    """Read one more token of each row; the normed output there and the cache with it."""
    here = jnp.arange(cache.visible.shape[1])[None] == cache.column
    visible = cache.visible | here

    def attention_of(keys: jax.Array, values: jax.Array) -> Callable:
        def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple:
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
    """Float32 logits of normed outputs."""
    return jnp.einsum("bd,vd->bv", hidden, decoder.ends.head, preferred_element_type=jnp.float32)


def attend_to_cache(
    query: Float[Array, "batch 1 heads head_dim"],
    keys: Float[Array, "batch kv_heads columns head_dim"],
    values: Float[Array, "batch kv_heads columns head_dim"],
    visible: Bool[Array, "batch columns"],
) -> Float[Array, "batch 1 heads head_dim"]:
    """``pallas_kernels.reference.attention`` of one query a row to its visible columns."""
    batch, _, heads, head_dim = query.shape
    grouped = query.reshape(batch, keys.shape[1], -1, head_dim)
    scores = jnp.einsum("bkgh,bksh->bkgs", grouped, keys, preferred_element_type=jnp.float32)
    hidden = jnp.where(visible, 0.0, -jnp.inf)[:, None, None]
    weights = jax.nn.softmax(scores * head_dim**-0.5 + hidden, axis=-1).astype(values.dtype)
    out = jnp.einsum("bkgs,bksh->bkgh", weights, values, preferred_element_type=jnp.float32)
    return out.reshape(batch, 1, heads, head_dim).astype(query.dtype)


def run_decoder_layers(
    decoder: Decoder, tokens: jax.Array, positions: jax.Array, attentions: list[Callable]
) -> tuple[jax.Array, tuple[Any, ...]]:
    """All layers and the last norm; what each layer's attention kept."""
    ends = decoder.ends
    x, rotation = ends.embed(tokens, positions)
    kept = []
    for block, attention in zip(decoder.layers, attentions, strict=True):
        x, layer = ends.layer(rotation, attention, x, block)
        kept.append(layer)
    return rms_norm(x, ends.norm[...], eps=ends.config.norm_eps), tuple(kept)


def _in_cache(x: jax.Array, columns: int) -> jax.Array:
    """Keys or values (batch, length, kv_heads, head_dim) at the start of a layer's cache."""
    padding = [(0, 0), (0, 0), (0, columns - x.shape[1]), (0, 0)]
    return _placed(jnp.pad(x.swapaxes(1, 2), padding))


def _placed(x: jax.Array) -> jax.Array:
    return constrain(x, "batch", "kv_heads", "length", None)
