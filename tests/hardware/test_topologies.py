"""Tests of TPU slices by name and by shape."""

import math

import pytest

from llama_cpt.hardware.topologies import FAMILIES, Topology, find_topology, shapes_of
from llama_cpt.runtime.errors import UserError


@pytest.mark.parametrize(
    ("name", "text", "chips"),
    [
        ("v5p-256", "v5p:4x4x8", 128),
        ("v5p-8", "v5p:2x2x1", 4),
        ("v5p-3072", "v5p:8x12x16", 1536),
        ("v5p:4x4x8", "v5p:4x4x8", 128),
        ("v5e-256", "v5e:16x16", 256),
        ("v5litepod-16", "v5e:4x4", 16),
        ("v6e-64", "v6e:8x8", 64),
        ("tpu7x-128", "tpu7x:4x4x4", 64),
    ],
)
def test_names_and_shapes(name, text, chips):
    found = find_topology(name)
    assert (found.text, found.chips) == (text, chips)
    assert found.devices == chips * (2 if "7x" in name else 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_name_is_the_most_compact_shape_of_its_size(family):
    for shape in shapes_of(family):
        one = Topology(family, shape)
        assert find_topology(one.text) == one
        named = find_topology(one.name)
        assert named.chips == one.chips and sum(named.shape) <= sum(shape)
    assert math.prod(shapes_of(family)[-1]) <= FAMILIES[family].max_chips


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v5p-300", r"v5p:4x4x8 \(v5p-256, 128 chips\) or v5p:4x4x12 \(v5p-384, 192 chips\)"),
        ("v6e:3x5", r"v6e:2x4 \(v6e-8, 8 chips\) or v6e:4x4"),
        ("v5e-1000", "v5e:16x16"),
        ("v5p:4x4x384", r"v5p:16x16x24 \(v5p-12288, 6144 chips\)"),
        ("v9-8", "use one of v5e, v5p, v6e, tpu7x"),
        ("pod", "must be a shape such as v5p:4x4x8 or a name such as v5p-256"),
    ],
)
def test_unknown_slice_error_names_the_nearest(text, expected):
    with pytest.raises(UserError, match=expected):
        find_topology(text)
