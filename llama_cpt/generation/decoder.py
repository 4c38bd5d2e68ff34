"""Loading of a Llama model as a decoder, and prefill and decoding with a key-value cache.

Prompts are padded on the right to a common length. Each decoding step appends one column to the
cache, at the same index for every row, so the step updates one slice of the cache. The columns
between a short prompt and its generated tokens are masked. Positions count tokens, not columns.

Each layer has its own arrays instead of a slice of stacked arrays. A loop over stacked layers
copies each layer's weights before use, and with one token per row, this copy takes most of the
time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import MeshConfig
from llama_cpt.data.batch import Leaf
from llama_cpt.model.attention import attend
from llama_cpt.model.llama import Attention, Block, Llama, abstract_llama, rms_norm
from llama_cpt.parallel.mesh import constrain, make_mesh, shardings
from llama_cpt.weights.source import open_source
from pallas_kernels.flash_attention import refusal

MIN_BUCKET = 128
"""The smallest padded length, in tokens. The TPU attention kernels require multiples of 128."""
Layer = tuple[Leaf, Leaf]
"""The keys and the values of one layer, each of shape (batch, kv_heads, columns, head_dim)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoder:
    """The weights of a model in its compute dtype, with one ``Block`` per layer."""

    ends: Llama
    """The model without its layers: the embedding, the last norm and the output matrix."""
    layers: tuple[Block, ...]
    """The parameters of each layer."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The key-value cache of a batch. A column holds one token per row."""

    layers: tuple[Layer, ...]
    """The keys and values of each layer."""
    visible: Leaf
    """bool (batch, columns): True for the columns that a row attends to."""
    lengths: Leaf
    """int32 (batch,): the number of tokens in each row, which is the position of the next token."""
    column: Leaf
    """int32 scalar: the index of the column into which the next tokens are written."""


def make_decoder(model: Llama, mesh: Mesh | None = None) -> Decoder:
    """Return a decoder with a copy of the weights of ``model``, sharded in the same way.

    ``mesh`` is the mesh of ``model``; None means one device. Raises ValueError if the context axis
    of ``mesh`` is larger than 1.
    """
    if mesh is not None and mesh.shape["context"] > 1:
        raise ValueError(
            f"mesh.context is {mesh.shape['context']}; it must be 1, because generation does not "
            "support context parallelism"
        )
    placed = None if mesh is None else shardings(jax.eval_shape(decoder_from_model, model), mesh)
    return jax.jit(decoder_from_model, out_shardings=placed)(model)


def decoder_from_model(model: Llama) -> Decoder:
    """Return the decoder of ``model``. The function can run under ``jax.jit``."""
    # tree.map copies the tree, so the caller's model keeps its layers.
    ends = jax.tree.map(lambda x: x.astype(model.compute_dtype), model)
    stacked, ends.layers = ends.layers, None

    def one(layer: int, parameter: nnx.Param[Any]) -> nnx.Param[Any]:
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
    """Run the forward pass on a batch of prompts, and store the keys and values in a new cache.

    ``tokens`` is padded on the right, and row i has ``lengths[i]`` tokens. The cache has
    ``columns`` columns. Returns the hidden states of all tokens after the last norm, and the cache.
    """
    length = tokens.shape[1]
    index = jnp.arange(length)[None]
    # Padding has segment id 0, so the tokens of a prompt do not attend to it.
    segment_ids = (index < lengths[:, None]).astype(jnp.int32)

    def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Layer]:
        out = attend(query, key, value, segment_ids, implementation=decoder.ends.attention)
        return out, (_in_cache(key, columns), _in_cache(value, columns))

    positions = jnp.broadcast_to(index, tokens.shape)
    x, layers = run_decoder_layers(decoder, tokens, positions, [attention] * len(decoder.layers))
    visible = jnp.arange(columns)[None] < lengths[:, None]
    return x, Cache(layers, visible, lengths, jnp.int32(length))


def decode(
    decoder: Decoder, cache: Cache, tokens: Int[Array, " batch"]
) -> tuple[Float[Array, "batch embed"], Cache]:
    """Run the forward pass on one token per row.

    Returns the hidden states after the last norm, and the cache with the new tokens.
    """
    here = jnp.arange(cache.visible.shape[1])[None] == cache.column
    visible = cache.visible | here

    def extend(old: jax.Array, new: jax.Array) -> jax.Array:
        # All rows write to the same column, so this updates one slice and needs no scatter.
        start = (0, 0, cache.column, 0)
        return _placed(jax.lax.dynamic_update_slice(old, new.swapaxes(1, 2), start))

    def attention_of(keys: jax.Array, values: jax.Array) -> Attention:
        def attention(
            query: jax.Array, key: jax.Array, value: jax.Array
        ) -> tuple[jax.Array, Layer]:
            kept = extend(keys, key), extend(values, value)
            return attend_to_cache(query, *kept, visible), kept

        return attention

    attentions = [attention_of(*layer) for layer in cache.layers]
    x, layers = run_decoder_layers(decoder, tokens[:, None], cache.lengths[:, None], attentions)
    return x[:, 0], Cache(layers, visible, cache.lengths + 1, cache.column + 1)


def compute_logits(
    decoder: Decoder, hidden: Float[Array, "batch embed"]
) -> Float[Array, "batch vocab"]:
    """Return the float32 logits of ``hidden``, the hidden states after the last norm."""
    return jnp.einsum("bd,vd->bv", hidden, decoder.ends.head, preferred_element_type=jnp.float32)


def attend_to_cache(
    query: Float[Array, "batch 1 heads head_dim"],
    keys: Float[Array, "batch kv_heads columns head_dim"],
    values: Float[Array, "batch kv_heads columns head_dim"],
    visible: Bool[Array, "batch columns"],
) -> Float[Array, "batch 1 heads head_dim"]:
    """Return the attention output of one query per row. The query sees the row's visible columns.

    The arithmetic is the same as in ``pallas_kernels.reference``.
    """
    batch, _, heads, head_dim = query.shape
    # Query heads that share a key-value head are grouped, so keys need not be repeated.
    grouped = query.reshape(batch, keys.shape[1], -1, head_dim)
    scores = jnp.einsum("bkgh,bksh->bkgs", grouped, keys, preferred_element_type=jnp.float32)
    hidden = jnp.where(visible, 0.0, -jnp.inf)[:, None, None]
    weights = jax.nn.softmax(scores * head_dim**-0.5 + hidden, axis=-1).astype(values.dtype)
    out = jnp.einsum("bkgs,bksh->bkgh", weights, values, preferred_element_type=jnp.float32)
    return out.reshape(batch, 1, heads, head_dim).astype(query.dtype)


def run_decoder_layers(
    decoder: Decoder, tokens: jax.Array, positions: jax.Array, attentions: Sequence[Attention]
) -> tuple[jax.Array, tuple[Any, ...]]:
    """Run all layers and the last norm.

    ``attentions`` contains one function per layer. Each function returns the attention output and a
    cache entry. Returns the hidden states after the last norm, and the cache entries of all layers.
    """
    ends = decoder.ends
    x, rotation = ends.embed(tokens, positions)
    kept = []
    for block, attention in zip(decoder.layers, attentions, strict=True):
        x, layer = ends.layer(rotation, attention, x, block)
        kept.append(layer)
    return rms_norm(x, ends.norm[...], eps=ends.config.norm_eps), tuple(kept)


def _in_cache(x: jax.Array, columns: int) -> jax.Array:
    """Convert keys or values of shape (batch, length, kv_heads, head_dim) to the cache's layout.

    The result has shape (batch, kv_heads, columns, head_dim) and is padded with zeros.
    """
    padding = [(0, 0), (0, 0), (0, columns - x.shape[1]), (0, 0)]
    return _placed(jnp.pad(x.swapaxes(1, 2), padding))


def _placed(x: jax.Array) -> jax.Array:
    return constrain(x, "batch", "kv_heads", "length", None)


def decoder_mesh(config: ModelConfig) -> Mesh:
    """Return a mesh over all devices for a decoder of ``config``.

    ``tensor`` is the largest size that divides the heads, the MLP and the vocabulary, and ``fsdp``
    the largest remaining size that divides the embedding. The rest of the devices hold replicas.
    """
    devices = jax.device_count()
    tensor = math.gcd(devices, config.num_kv_heads, config.mlp_dim, config.vocab_size)
    fsdp = math.gcd(devices // tensor, config.embed_dim)
    return make_mesh(MeshConfig(-1, fsdp, tensor))


def decoder_attention(head_dim: int) -> str:
    """Return the implementation of attention with which prompts are read."""
    # Prompts are padded to buckets. A kernel that supports the smallest bucket supports all others.
    supported = jax.default_backend() == "tpu" and not refusal(MIN_BUCKET, head_dim)
    return "pallas" if supported else "reference"


def load_decoder(source: str, config: ModelConfig, mesh: Mesh, dtype: str) -> Decoder:
    """Load a model onto ``mesh`` as a decoder that computes in ``dtype``.

    ``source`` is a path or name that ``open_source`` accepts.
    """
    attention = decoder_attention(config.head_dim)
    abstract = abstract_llama(config, compute_dtype=dtype, attention=attention)
    return make_decoder(open_source(source).load(abstract, mesh), mesh)
