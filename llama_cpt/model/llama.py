"""The Llama 3, 3.1 and 3.2 models, as pytrees.

Letters in einsum strings, here and in ``generation/``: b batch, t query position, s key position,
d embed, k key/value heads, g query heads per key/value head, h head size, v vocab.
Matrices are stored as (in, out) and stacked over layers. The line that creates a parameter states
its shape, its logical axes (``parallel.mesh.AXIS_RULES`` maps them to mesh axes) and the standard
deviation of its initial values.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from llama_cpt.config.model import ModelConfig, RopeScaling
from llama_cpt.model.attention import attend
from llama_cpt.model.embedding import lookup
from llama_cpt.model.linear import Matrix, has_adapters, matmul
from llama_cpt.model.mlp import mlp, sliced_mlp, slices
from llama_cpt.model.scan_layers import run_layers
from llama_cpt.parallel.context_parallel import from_zigzag, to_zigzag
from llama_cpt.parallel.mesh import constrain

Rotation = tuple[jax.Array, jax.Array]
"""RoPE's cosines and sines: two float32 arrays of shape (batch, length, head_dim / 2)."""

Attention = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
"""A function ``(query, key, value) -> (out, cache)``, where ``cache`` is a KV cache or None."""


def rms_norm(
    x: Float[Array, "*rows embed"], scale: Float[Array, " embed"], *, eps: float
) -> Float[Array, "*rows embed"]:
    """Return x / sqrt(mean(x^2) + eps) * scale in the dtype of ``x``.

    Source: Zhang and Sennrich 2019, arXiv 1910.07467, equation 4.
    """
    # The mean is computed in float32, because bfloat16 has too few bits for a sum over the
    # embedding.
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return jnp.broadcast_to(scale.astype(x.dtype), x.shape) * normed.astype(x.dtype)


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Return RoPE's frequencies in radians per position, float32 of shape (head_dim / 2,).

    The frequency of pair i is theta^(-2i / head_dim) (Su et al. 2021, arXiv 2104.09864, equation
    15). With Llama 3.1's ``scaling``, a frequency below the threshold ``low_freq_factor`` is
    divided by ``factor``, and a frequency above the threshold ``high_freq_factor`` is unchanged.
    Between the thresholds, the result is interpolated linearly between these two values. The unit
    of the thresholds is one full turn per original context length.
    """
    # NumPy computes in float64, because the position multiplies the error of a frequency.
    frequency = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return frequency.astype(np.float32)
    turns = scaling.original_context_length * frequency / (2 * np.pi)
    spread = scaling.high_freq_factor - scaling.low_freq_factor
    keep = np.clip((turns - scaling.low_freq_factor) / spread, 0.0, 1.0)
    return (keep * frequency + (1 - keep) * frequency / scaling.factor).astype(np.float32)


def rotate(
    x: Float[Array, "batch length heads head_dim"],
    cos: Float[Array, "batch length half"],
    sin: Float[Array, "batch length half"],
) -> Float[Array, "batch length heads head_dim"]:
    """Rotate the features (i, i + head_dim / 2) of every head by the angle of pair i (RoPE).

    Source: Su et al. 2021, arXiv 2104.09864, equation 34. As in Hugging Face's implementation,
    feature i is paired with feature i + head_dim / 2. The paper pairs adjacent features.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


class Block(nnx.Module):
    """The parameters of all layers, stacked along dimension 0.

    Inside the scan over layers, an instance contains the parameters of one layer.
    """

    def __init__(self, config: ModelConfig, key: jax.Array) -> None:
        n, d, f = config.num_layers, config.embed_dim, config.mlp_dim
        heads, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        keys = iter(jax.random.split(key, 7))
        # The matrices that write to the residual stream have smaller initial values, as in GPT-2
        # (Radford et al. 2019, section 2.3).
        residual = 0.02 / (2 * n) ** 0.5
        self.attention_norm = _ones((n, d), ("layers", "norm"))
        self.query = _normal(next(keys), (n, d, heads), ("layers", "embed", "heads"))
        self.key = _normal(next(keys), (n, d, kv), ("layers", "embed", "kv_heads"))
        self.value = _normal(next(keys), (n, d, kv), ("layers", "embed", "kv_heads"))
        self.output = _normal(next(keys), (n, heads, d), ("layers", "heads", "embed"), residual)
        self.mlp_norm = _ones((n, d), ("layers", "norm"))
        self.gate = _normal(next(keys), (n, d, f), ("layers", "embed", "mlp"))
        self.up = _normal(next(keys), (n, d, f), ("layers", "embed", "mlp"))
        self.down = _normal(next(keys), (n, f, d), ("layers", "mlp", "embed"), residual)


class Llama(nnx.Module):
    """A Llama model with float32 parameters, initialized at random.

    Activations are in ``compute_dtype``. ``remat`` is the policy for recomputation in the backward
    pass (``ComputeConfig.remat``). ``attention`` is the name of an attention implementation, as
    returned by ``resolve_attention``. ``matmul_precision`` is the type of the operands in the
    layers' matrix products.
    """

    def __init__(
        self,
        config: ModelConfig,
        key: jax.Array,
        *,
        compute_dtype: Any = jnp.float32,
        remat: str = "none",
        attention: str = "reference",
        matmul_precision: str = "bf16",
    ) -> None:
        self.config, self.compute_dtype = config, jnp.dtype(compute_dtype)
        self.remat, self.attention = remat, attention
        self.matmul_precision = matmul_precision
        table = (config.vocab_size, config.embed_dim)
        embedding_key, layers_key, head_key = jax.random.split(key, 3)
        self.embedding = _normal(embedding_key, table, ("vocab", "embed"))
        self.layers = Block(config, layers_key)
        self.norm = _ones((config.embed_dim,), ("norm",))
        tied = config.tied_embeddings
        self.lm_head = None if tied else _normal(head_key, table, ("vocab", "embed"))

    @property
    def head(self) -> Float[Array, "vocab embed"]:
        """The output matrix in float32. If the embeddings are tied, it is the embedding table."""
        return (self.embedding if self.lm_head is None else self.lm_head)[...]

    def hidden(
        self,
        tokens: Int[Array, "batch length"],
        positions: Int[Array, "batch length"],
        segment_ids: Int[Array, "batch length"],
        *,
        embedding_noise: Float[Array, "batch length embed"] | None = None,
    ) -> Float[Array, "batch length embed"]:
        """Return the output of the last layer after the final norm, in the compute dtype.

        ``embedding_noise`` is added to the input of the first layer (NEFTune).
        """

        def layer(context: tuple[Rotation, jax.Array], x: jax.Array, block: Block) -> jax.Array:
            rotation, segment_ids = context

            def attention(
                query: jax.Array, key: jax.Array, value: jax.Array
            ) -> tuple[jax.Array, None]:
                return attend(query, key, value, segment_ids, implementation=self.attention), None

            return self.layer(rotation, attention, x, block)[0]

        # With context parallelism, the layers process a row in zigzag order (context_parallel). The
        # segment ids remain in the row's order, because attention gathers the keys in that order.
        x, rotation = self.embed(to_zigzag(tokens), to_zigzag(positions))
        if embedding_noise is not None:
            x = x + to_zigzag(embedding_noise).astype(x.dtype)
        context = rotation, segment_ids
        x = run_layers(layer, context, x, self.layers, remat=self.remat)
        return from_zigzag(rms_norm(x, self.norm[...], eps=self.config.norm_eps))

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        positions: Int[Array, "batch length"],
        segment_ids: Int[Array, "batch length"],
    ) -> Float[Array, "batch length vocab"]:
        """Return the float32 logits of every position."""
        x = self.hidden(tokens, positions, segment_ids)
        head = self.head.astype(self.compute_dtype)
        return jnp.einsum("btd,vd->btv", x, head, preferred_element_type=jnp.float32)

    def embed(
        self, tokens: Int[Array, "batch length"], positions: Int[Array, "batch length"]
    ) -> tuple[Float[Array, "batch length embed"], Rotation]:
        """Return the input of the first layer, and RoPE's cosines and sines for all positions."""
        config = self.config
        with jax.named_scope("embed"):
            x = lookup(self.embedding[...], tokens, self.compute_dtype)
            assert isinstance(x, jax.Array)
            x = constrain(x, "batch", "length", "act_embed")
            frequency = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
            # The angles are float32: bfloat16 would round position 257 to 256.
            angles = positions.astype(jnp.float32)[..., None] * frequency[None, None]
            return x, (jnp.cos(angles), jnp.sin(angles))

    def layer(
        self,
        rotation: Rotation,
        attention: Attention,
        x: Float[Array, "batch length embed"],
        block: Block,
    ) -> tuple[Float[Array, "batch length embed"], Any]:
        """Apply one layer with the parameters in ``block``.

        Returns the output of the layer and the cache that ``attention`` returns.
        """
        x = checkpoint_name(constrain(x, "batch", "length", "act_embed"), "layer_input")
        with jax.named_scope("attention"):
            attended, cache = self._attention(rotation, attention, x, block)
            x = x + attended
        with jax.named_scope("mlp"):
            x = x + self._mlp(x, block)
        return constrain(x, "batch", "length", "act_embed"), cache

    def _attention(
        self,
        rotation: Rotation,
        attention: Attention,
        x: Float[Array, "batch length embed"],
        block: Block,
    ) -> tuple[Float[Array, "batch length embed"], Any]:
        config = self.config

        def project(x: jax.Array, block: Block) -> tuple[jax.Array, jax.Array, jax.Array]:
            x = rms_norm(x, block.attention_norm[...], eps=config.norm_eps)

            def heads(matrix: Matrix, number: int) -> jax.Array:
                out = matmul(x, matrix, self.matmul_precision)
                return out.reshape(*x.shape[:2], number, config.head_dim)

            query = rotate(heads(block.query, config.num_heads), *rotation)
            key = rotate(heads(block.key, config.num_kv_heads), *rotation)
            return query, key, heads(block.value, config.num_kv_heads)

        if self.remat == "full":
            # The backward pass recomputes the whole layer and then starts with the MLP. Without
            # this checkpoint, the recomputed norm, query, key and value of attention would stay in
            # memory during the MLP's backward pass. With this checkpoint, they are recomputed after
            # the MLP's backward pass.
            project = jax.checkpoint(project)
        out, cache = attention(*project(x, block))
        out = checkpoint_name(out.reshape(*x.shape[:2], -1), "attention")
        return matmul(out, block.output, self.matmul_precision), cache

    def _mlp(
        self, x: Float[Array, "batch length embed"], block: Block
    ) -> Float[Array, "batch length embed"]:
        x = rms_norm(x, block.mlp_norm[...], eps=self.config.norm_eps)
        matrices = block.gate, block.up, block.down
        # The sliced MLP recomputes its activations in the backward pass. The other remat policies
        # save them instead.
        recomputes = self.remat in ("full", "offload")
        if not recomputes or has_adapters(matrices) or slices(self.config.mlp_dim) == 1:
            return mlp(x, *matrices, self.matmul_precision)
        return sliced_mlp(x, *(matrix[...] for matrix in matrices), self.matmul_precision)


def abstract_llama(config: ModelConfig, **options: Any) -> Llama:
    """Return a Llama whose parameters are ShapeDtypeStructs, without allocating arrays.

    ``options`` are keyword arguments of ``Llama``.
    """
    return jax.eval_shape(lambda: Llama(config, jax.random.key(0), **options))


def shallow_copy(model: Llama) -> Llama:
    """Return a new Llama object that shares the parameters of ``model``."""
    return jax.tree.map(lambda leaf: leaf, model, is_leaf=lambda node: isinstance(node, nnx.Param))


def with_precision(model: Llama, precision: str) -> Llama:
    """Return a copy of ``model`` with a different ``matmul_precision`` and shared parameters.

    ``model`` is not modified, so a jitted function can call ``with_precision`` on its argument.
    """
    copy = shallow_copy(model)
    copy.matmul_precision = precision
    return copy


def with_attention(model: Llama, attention: str) -> Llama:
    """Return a copy of ``model`` with a different ``attention`` and shared parameters."""
    copy = shallow_copy(model)
    copy.attention = attention
    return copy


def _normal(
    key: jax.Array, shape: tuple[int, ...], axes: tuple[str, ...], spread: float = 0.02
) -> nnx.Param[jax.Array]:
    return nnx.Param(spread * jax.random.normal(key, shape, jnp.float32), axes=axes)


def _ones(shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param[jax.Array]:
    return nnx.Param(jnp.ones(shape, jnp.float32), axes=axes)
