"""Tests that shapes in signatures are checked while tests run."""

import jax.numpy as jnp
import jaxtyping
import pytest

from examples.bilingual_world.english import inflect
from pallas_kernels.reference import attention
from tests.conftest import SHAPED


def test_wrong_shape_raises_an_error():
    row = jnp.zeros((1, 8, 2, 4))
    attention(row, row, row, jnp.ones((1, 8), jnp.int32))
    with pytest.raises(jaxtyping.TypeCheckError):
        attention(row, row, row[:, 1:], jnp.ones((1, 8), jnp.int32))


def test_modules_without_shapes_are_not_wrapped():
    assert "pallas_kernels.reference" in SHAPED and len(SHAPED) > 30
    assert not hasattr(inflect, "__wrapped__")
