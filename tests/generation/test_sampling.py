"""Sampling filters equal a NumPy implementation, and samples follow the distribution."""

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt.generation.sampling import Sampling, filter_logits, sample
from llama_cpt.runtime.errors import UserError

VOCAB = 12
FILTER, DRAW = jax.jit(filter_logits), jax.jit(sample)


def allowed(logits: np.ndarray, sampling: Sampling) -> set[int]:
    """Return the ids that remain after top-k, top-p and min-p, in this order."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    order = order[: sampling.top_k or None]
    shares = np.exp(logits[order] - logits[order[0]])
    shares /= shares.sum()
    before = np.cumsum(shares) - shares
    order = [
        one
        for one, sum_before in zip(order, before, strict=True)
        if sum_before < sampling.top_p or sampling.top_p == 1
    ]
    best = logits[order[0]]
    return {one for one in order if np.exp(logits[one] - best) >= sampling.min_p}


@settings(deadline=None, max_examples=200)
@given(
    st.permutations(range(VOCAB)),
    st.integers(0, VOCAB + 3),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
    st.floats(0.2, 2.0),
)
def test_filters_equal_numpy(order, top_k, top_p, min_p, spread):
    # Unequal steps between logits avoid ties, and sums of probabilities that equal a limit.
    logits = (spread * np.cumsum(1 + 0.1 * np.arange(VOCAB)))[list(order)].astype(np.float32)
    sampling = Sampling(1.0, top_k, top_p, min_p)
    kept = np.asarray(FILTER(jnp.asarray(logits)[None], sampling.settings()))[0]
    ours = {int(i) for i in np.flatnonzero(np.isfinite(kept))}
    # float32 sums can be on either side of a limit.
    least, most = (
        allowed(logits, Sampling(1.0, top_k, *np.clip((top_p - e, min_p + e), 0, 1).tolist()))
        for e in (1e-5, -1e-5)
    )
    assert least <= ours <= most
    assert all(kept[i] == logits[i] for i in ours)


def drawn(logits: np.typing.ArrayLike, sampling: Sampling, count: int) -> np.ndarray:
    row = np.asarray(logits, np.float32)
    many = jnp.broadcast_to(row, (count, len(row)))
    return np.asarray(
        DRAW(many, sampling.settings(), jnp.arange(count), jnp.zeros(count, jnp.int32))
    )


def test_greedy_takes_the_first_of_the_likeliest():
    assert set(drawn([0.0, 3.0, 3.0, 1.0], Sampling(top_k=2, seed=5), 8)) == {1}


def test_token_frequencies_follow_the_distribution():
    logits, count = np.array([0.0, 1.0, 2.0, -1.0]), 20_000
    shares = (
        np.bincount(drawn(logits, Sampling(temperature=2.0, seed=3), count), minlength=4) / count
    )
    expected = np.exp(logits / 2) / np.exp(logits / 2).sum()
    # Five standard deviations of the frequency of a token with probability 0.5.
    np.testing.assert_allclose(shares, expected, atol=5 * 0.5 / count**0.5)


def test_draw_depends_on_row_and_position():
    logits = jnp.zeros((1, 1000))
    values = Sampling(temperature=1.0).settings()
    tokens = {
        int(DRAW(logits, values, jnp.array([row]), jnp.array([at]))[0])
        for row in range(4)
        for at in range(4)
    }
    assert len(tokens) > 12


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"seed": -1},
    ],
)
def test_refused_by_name(fields):
    with pytest.raises(UserError, match=f"^{next(iter(fields))}="):
        Sampling(**fields)
