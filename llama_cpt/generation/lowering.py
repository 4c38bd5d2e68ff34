"""Lowering of prefill and decode for a TPU slice on a machine without a TPU."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
import numpy as np

from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import MeshConfig
from llama_cpt.generation.decoder import Cache, Decoder, decoder_from_model
from llama_cpt.generation.generate import GREEDY, STOP_IDS, GenerationState, advance, start
from llama_cpt.model.attention import resolve_attention
from llama_cpt.model.llama import abstract_llama
from llama_cpt.parallel.mesh import partition_spec, topology_mesh, with_shardings

DTYPE = "bfloat16"


def lower_prefill(
    config: ModelConfig, mesh: MeshConfig, topology: str, *, rows: int, length: int, columns: int
) -> jax.stages.Lowered:
    """Lower the prefill of ``rows`` prompts of ``length`` tokens for the TPU slice ``topology``.

    The cache has room for ``columns`` tokens per row.
    """
    placed = topology_mesh(mesh, topology)
    attention = resolve_attention("auto", "tpu", length, config.head_dim, DTYPE)
    decoder = _abstract_decoder(config, attention, placed)
    with jax.set_mesh(placed):
        tokens = _leaf(placed, (rows, length), jnp.int32, "batch", None)
        lengths = _leaf(placed, (rows,), jnp.int32, "batch")
        return start.lower(decoder, tokens, lengths, columns=columns)


def lower_decode(
    config: ModelConfig, mesh: MeshConfig, topology: str, *, rows: int, columns: int
) -> jax.stages.Lowered:
    """Lower the decoding of ``rows`` rows for the TPU slice ``topology``.

    The cache has room for ``columns`` tokens per row.
    """
    placed = topology_mesh(mesh, topology)
    decoder = _abstract_decoder(config, "reference", placed)
    state = _abstract_state(config, placed, rows, columns)
    with jax.set_mesh(placed):
        stops = _leaf(placed, (STOP_IDS,), jnp.int32)
        settings = tuple(_leaf(placed, (), np.asarray(x).dtype) for x in GREEDY.settings())
        return advance.lower(decoder, state, _leaf(placed, (), jnp.int32), stops, settings)


def _abstract_decoder(config: ModelConfig, attention: str, mesh: Mesh) -> Decoder:
    model = abstract_llama(config, compute_dtype=DTYPE, attention=attention)
    return with_shardings(jax.eval_shape(decoder_from_model, model), mesh)


def _abstract_state(config: ModelConfig, mesh: Mesh, rows: int, columns: int) -> GenerationState:
    shape = rows, config.num_kv_heads, columns, config.head_dim
    keys = _leaf(mesh, shape, jnp.dtype(DTYPE), "batch", "kv_heads", "length", None)
    cache = Cache(
        ((keys, keys),) * config.num_layers,
        _leaf(mesh, (rows, columns), jnp.bool_, "batch", "length"),
        _leaf(mesh, (rows,), jnp.int32, "batch"),
        _leaf(mesh, (), jnp.int32),
    )
    logits = _leaf(mesh, (rows, config.vocab_size), jnp.float32, "batch", "vocab")
    return GenerationState(cache, logits, _leaf(mesh, (rows,), jnp.bool_))


def _leaf(mesh: Mesh, shape: tuple[int, ...], dtype: Any, *axes: str | None) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, partition_spec(*axes)))
