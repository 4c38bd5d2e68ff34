"""The chunked loss has the same value, NLL per token and gradients as the loss on whole logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt.config.schema import MeshConfig
from llama_cpt.objectives.cross_entropy import linear_cross_entropy, token_nll
from llama_cpt.parallel.mesh import make_mesh, partition_spec

BATCH, LENGTH, EMBED, VOCAB = 8, 9, 16, 48
MESHES = {
    "one_device": MeshConfig(1, 1, 1),
    "fsdp": MeshConfig(1, 8, 1),
    "tensor": MeshConfig(1, 4, 2),
    "all_axes": MeshConfig(2, 2, 2),
}


def mesh_of(config: MeshConfig) -> jax.sharding.Mesh:
    return make_mesh(config, jax.devices()[: config.replica * config.fsdp * config.tensor])


def inputs(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return hidden, head, targets and a mask with a different number of tokens in each row."""
    draw = np.random.default_rng(seed)
    hidden = draw.normal(size=(BATCH, LENGTH, EMBED)).astype(np.float32)
    head = draw.normal(size=(VOCAB, EMBED)).astype(np.float32)
    targets = draw.integers(0, VOCAB, (BATCH, LENGTH), dtype=np.int32)
    lengths = np.array([LENGTH, 1, 0, 5, 7, 2, LENGTH, 3])
    weights = (np.arange(LENGTH)[None] < lengths[:, None]).astype(np.float32)
    return hidden, head, targets, weights


def plain(hidden, head, targets, weights, z_loss):
    """Return the loss, the NLL and both gradients in float64, computed from whole logits."""
    hidden, head, weights = (np.asarray(x, np.float64) for x in (hidden, head, weights))
    logits = hidden @ head.T
    top = logits.max(-1, keepdims=True)
    log_z = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    nll = log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    loss = (weights * (nll + z_loss * log_z**2)).sum()
    softmax = np.exp(logits - log_z[..., None])
    d_logits = softmax * (1 + 2 * z_loss * log_z)[..., None] - np.eye(VOCAB)[targets]
    d_logits *= weights[..., None]
    return loss, nll, d_logits @ head, np.einsum("btv,btd->vd", d_logits, hidden)


def ours(mesh, arrays, z_loss, chunk_tokens):
    hidden, head, targets, weights = arrays

    def loss(hidden, head):
        return linear_cross_entropy(
            hidden, head, jnp.asarray(targets), jnp.asarray(weights), z_loss, chunk_tokens
        )

    with jax.set_mesh(mesh):
        head = jax.device_put(head, jax.NamedSharding(mesh, partition_spec("vocab", "embed")))
        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (value, nll), (d_hidden, d_head) = run(jnp.asarray(hidden), head)
    return value, nll, d_hidden, d_head


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
# The number of tokens per device is not a multiple of 5, and is less than 1000.
@pytest.mark.parametrize("chunk_tokens", [5, 1000])
def test_loss_and_gradients_equal_those_of_whole_logits(name, z_loss, chunk_tokens):
    arrays = inputs()
    expected = plain(*arrays, z_loss)
    for have, want in zip(
        ours(mesh_of(MESHES[name]), arrays, z_loss, chunk_tokens), expected, strict=True
    ):
        np.testing.assert_allclose(have, want, rtol=2e-5, atol=2e-5)


def test_head_gradient_is_sharded_like_the_head():
    mesh = mesh_of(MESHES["all_axes"])
    d_head = ours(mesh, inputs(), 0.0, 5)[3]
    place = jax.NamedSharding(mesh, partition_spec("vocab", "embed"))
    assert d_head.sharding.is_equivalent_to(place, d_head.ndim)
    assert d_head.addressable_shards[0].data.shape == (VOCAB // 2, EMBED // 2)


def test_loss_and_gradients_of_large_logits_are_finite():
    hidden, head, targets, weights = inputs()
    arrays = hidden * 100, head * 10, targets, weights
    value, nll, *gradients = ours(mesh_of(MESHES["tensor"]), arrays, 0.0, 5)
    np.testing.assert_allclose(value, plain(*arrays, 0.0)[0], rtol=1e-5)
    assert all(np.isfinite(x).all() for x in (nll, *gradients))


def test_gradient_scales_with_the_cotangent():
    hidden, *others = (jnp.asarray(x) for x in inputs())

    def half(hidden):
        return linear_cross_entropy(hidden, *others, 0.0, 5)[0] / 2

    with jax.set_mesh(mesh_of(MESHES["one_device"])):
        gradient = jax.grad(half)(hidden)
    np.testing.assert_allclose(gradient, plain(*inputs(), 0.0)[2] / 2, rtol=2e-5, atol=2e-5)


def test_token_nll_equals_the_loss_nll():
    hidden, head, targets, weights = inputs()
    with jax.set_mesh(mesh_of(MESHES["tensor"])):
        nll = token_nll(*(jnp.asarray(x) for x in (hidden, head, targets)), 7)
    np.testing.assert_allclose(nll, plain(hidden, head, targets, weights, 0.0)[1], rtol=1e-5)
