"""A tiny model, meshes and a batch for tests of single training steps."""

from typing import Any

from flax import nnx
import jax
import numpy as np

from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import MeshConfig, OptimizerConfig
from llama_cpt.data.batch import TokenBatch
from llama_cpt.parallel.mesh import make_mesh

MODEL = ModelConfig(
    vocab_size=64,
    embed_dim=32,
    mlp_dim=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    rope_scaling=None,
    norm_eps=1e-5,
    tied_embeddings=False,
    context_length=16,
)
OPTIMIZER = OptimizerConfig(peak_learning_rate=1e-2)
# The rows of a micro-batch must be a multiple of the batch axes: 32 rows / 4 parts = 8 devices.
ROWS, LENGTH = 32, 16
MESHES = {
    "1x1": MeshConfig(1, 1, 1),
    "8x1": MeshConfig(1, 8, 1),
    "4x2": MeshConfig(1, 4, 2),
    "2x2x2": MeshConfig(2, 2, 2),
}


def mesh_of(name: str) -> jax.sharding.Mesh:
    config = MESHES[name]
    return make_mesh(config, jax.devices()[: config.replica * config.fsdp * config.tensor])


def ragged_batch(num_microbatches: int) -> TokenBatch:
    """Return rows with two documents each.

    From the first to the last row, the fraction of targets that count increases from 0 to 1.
    """
    draw = np.random.default_rng(7)
    tokens = draw.integers(0, MODEL.vocab_size, (ROWS, LENGTH + 1), dtype=np.int32)
    cut = draw.integers(1, LENGTH, (ROWS, 1))
    place = np.arange(LENGTH)[None]
    learnt = place < np.linspace(0, LENGTH, ROWS).astype(int)[:, None]
    corpus = np.broadcast_to((np.arange(ROWS) % 2)[:, None], (ROWS, LENGTH))
    batch = TokenBatch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        loss_mask=learnt.astype(np.float32),
        segment_ids=(1 + (place >= cut)).astype(np.int32),
        positions=np.where(place >= cut, place - cut, place).astype(np.int32),
        corpus=corpus.astype(np.int32),
        row=np.zeros((ROWS, 2), np.uint32),
    )
    return jax.tree.map(
        lambda x: x.reshape(num_microbatches, ROWS // num_microbatches, *x.shape[1:]), batch
    )


def params(tree) -> list[nnx.Param[Any]]:
    is_param = lambda leaf: isinstance(leaf, nnx.Param)
    return [leaf for leaf in jax.tree.leaves(tree, is_leaf=is_param) if is_param(leaf)]
