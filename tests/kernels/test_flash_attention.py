"""Tests that the attention kernels equal the reference in value and gradients, interpreted."""

from dataclasses import dataclass
import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt.model.splash import splash_attention
from pallas_kernels import reference
from pallas_kernels.block_sizes import BlockSizes, current_block_sizes
from pallas_kernels.flash_attention import flash_attention


@dataclass(frozen=True)
class Case:
    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    sizes: BlockSizes
    dtype: str = "float32"

    def operands(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Return random values for query, key, value and the gradient of the output."""
        draw = np.random.default_rng(0)

        def drawn(heads: int) -> jax.Array:
            shape = self.batch, self.length, heads, self.head_dim
            return jnp.asarray(draw.normal(size=shape), self.dtype)

        return drawn(self.heads), drawn(self.kv_heads), drawn(self.kv_heads), drawn(self.heads)


# The cases cover groups of 1, 2, 3 and 4 query heads per key head, two key heads per step of the
# grid, padded rows, rows shorter than a tile, and rows for which the backward kernel runs several
# times.
CASES = {
    "two kv heads per step": Case(2, 512, 4, 2, 64, BlockSizes(256, 128, 2, 128, 1, 256)),
    "padded": Case(1, 1152, 3, 1, 128, BlockSizes(256, 256, 1, 256)),
    "no group": Case(1, 384, 2, 2, 128, BlockSizes(256, 128, 3, 128)),
    "one tile": Case(2, 128, 4, 1, 64, BlockSizes()),
    "several passes": Case(1, 640, 2, 1, 256, BlockSizes(128, 128, 1, 128, 0, 512)),
    "bfloat16": Case(1, 1024, 2, 1, 128, BlockSizes(256, 128, 1, 128), "bfloat16"),
}


def value_and_gradients(attention, query, key, value, out_gradient, segment_ids):
    out, back = jax.vjp(lambda *x: attention(*x, segment_ids), query, key, value)
    return out, *back(out_gradient)


def compiled(case: Case):
    def attention(*operands):
        return flash_attention(*operands, block_sizes=case.sizes, interpret=True)

    return jax.jit(lambda *operands: value_and_gradients(attention, *operands))


COMPILED = {name: compiled(case) for name, case in CASES.items()}
TRUTH = jax.jit(lambda *operands: value_and_gradients(reference.attention, *operands))


def errors(found, truth) -> list[float]:
    """Return the relative errors (in the 2-norm) of the value and of each gradient."""
    pairs = zip(found, truth, strict=True)
    wide = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in wide]


@st.composite
def segments(draw, case: Case) -> np.ndarray:
    """Draw segment ids of rows: packed documents, recurring ids, padding or a single document."""
    rows = []
    for _ in range(case.batch):
        spans = st.one_of(st.integers(1, 3), st.integers(1, case.length))
        ends = np.cumsum(draw(st.lists(spans, max_size=12)))
        row = np.searchsorted(ends, np.arange(case.length), side="right") + 1
        kinds = draw(st.sampled_from(["packed", "recurring", "padded", "one"]))
        if kinds == "recurring":
            row = row % 2 + 1
        elif kinds == "padded":
            row[draw(st.integers(0, case.length - 1)) :] = 0
        elif kinds == "one":
            row[:] = 7
        rows.append(row)
    return np.array(rows, np.int32)


@pytest.mark.parametrize(
    ("name", "examples"),
    [
        ("padded", 4),
        *(pytest.param(name, 16, marks=pytest.mark.slow) for name in CASES),
    ],
)
def test_kernel_equals_reference_in_value_and_gradients(name, examples):
    case = CASES[name]
    operands = case.operands()
    bound = 1e-5 if case.dtype == "float32" else 2e-2

    @settings(deadline=None, max_examples=examples)
    @given(segments(case))
    def check(segment_ids):
        found = COMPILED[name](*operands, segment_ids)
        truth = TRUTH(*(x.astype(jnp.float32) for x in operands), segment_ids)
        assert max(errors(found, truth)) < bound
        assert all(x.dtype == case.dtype for x in found)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one pass", "several passes"])
def test_chunks_add_up_to_the_whole_row(name):
    """Two calls with chunks (0, 3) and (1, 2) give the values and gradients of the whole row."""
    keys = 1024 if name == "one pass" else 256
    case = Case(2, 1024, 2, 1, 128, BlockSizes(128, 128, 1, 128, 0, keys))
    query, key, value, out_gradient = case.operands()
    # The last document of the second row is in the last chunks, so chunk 0 needs none of its keys.
    rows = [np.repeat([1, 2, 3], [200, 500, 324]), np.repeat([1, 2], [512, 512])]
    segment_ids = jnp.asarray(np.array(rows, np.int32))
    truth = TRUTH(query, key, value, out_gradient, segment_ids)
    for attention in (
        functools.partial(flash_attention, block_sizes=case.sizes, interpret=True),
        reference.attention,
    ):

        @jax.jit
        def part(query, out_gradient, chunks, attention=attention):
            of_chunks = functools.partial(attention, chunks=chunks)
            return value_and_gradients(of_chunks, query, key, value, out_gradient, segment_ids)

        found = [np.zeros(x.shape) for x in truth]
        for chunks in ([0, 3], [1, 2]):
            at = np.concatenate([np.arange(256) + 256 * chunk for chunk in chunks])
            out, d_query, *d_keys = part(query[:, at], out_gradient[:, at], jnp.asarray(chunks))
            found[0][:, at], found[1][:, at] = out, d_query
            for total, more in zip(found[2:], d_keys, strict=True):
                total += np.asarray(more)
        assert max(errors(found, truth)) < 1e-5


@pytest.mark.slow
@settings(deadline=None, max_examples=4)
@given(st.data())
def test_kernel_equals_reference_for_any_shape(data):
    tile = data.draw(st.sampled_from([128, 256, 384, 512]))
    part = st.sampled_from([n for n in (128, 256, 512) if tile % n == 0])
    sizes = BlockSizes(
        tile,
        data.draw(part),
        data.draw(st.integers(0, 4)),
        data.draw(part),
        data.draw(st.integers(0, 4)),
        data.draw(st.sampled_from([128, 512, 8192])),
    )
    kv_heads = data.draw(st.integers(1, 3))
    case = Case(
        data.draw(st.integers(1, 3)),
        128 * data.draw(st.integers(1, 8)),
        kv_heads * data.draw(st.integers(1, 5)),
        kv_heads,
        data.draw(st.sampled_from([64, 128, 256])),
        sizes,
    )
    operands, segment_ids = case.operands(), data.draw(segments(case))
    truth = TRUTH(*operands, segment_ids)
    assert max(errors(compiled(case)(*operands, segment_ids), truth)) < 1e-5


def test_reference_equals_itself_in_float64():
    """The float32 reference is accurate. tests/model/test_llama.py checks the formula itself."""
    case = CASES["two kv heads per step"]
    segment_ids = np.sort(np.random.default_rng(1).integers(1, 5, (2, 512)), -1).astype(np.int32)
    found = TRUTH(*case.operands(), segment_ids)
    with jax.enable_x64(True):
        query, key, value, out_gradient = (
            jnp.asarray(np.asarray(x), jnp.float64) for x in case.operands()
        )
        ids = jnp.asarray(segment_ids)
        truth = value_and_gradients(reference.attention, query, key, value, out_gradient, ids)
        assert truth[0].dtype == jnp.float64
    assert max(errors(found, truth)) < 1e-6


@pytest.mark.slow
def test_kernel_has_no_races():
    """The TPU interpreter simulates buffers and copies, and detects data races between them."""
    case = Case(2, 256, 2, 1, 128, BlockSizes(128, 128, 1, 128, 0, 128))
    segment_ids = jnp.asarray(np.repeat([[1, 2, 3, 3]] * 2, 64, axis=1), jnp.int32)

    def attention(*operands):
        return flash_attention(
            *operands,
            block_sizes=case.sizes,
            interpret=pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan"),
        )

    found = value_and_gradients(attention, *case.operands(), segment_ids)
    assert max(errors(found, TRUTH(*case.operands(), segment_ids))) < 1e-5
    assert not races_found()


def races_found() -> bool:
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    assert interpret_pallas_call.races is not None
    return interpret_pallas_call.races.races_found


@pytest.mark.slow
def test_error_in_bfloat16_is_at_most_splash_attentions():
    """Compare both kernels with the float32 result for the same operands.

    In interpret mode, splash attention multiplies weights and values in float32. On a TPU, it
    rounds the weights to bfloat16 first, as our kernel always does. Our error of the value may
    therefore be slightly larger here.
    """
    case = CASES["bfloat16"]
    operands = case.operands()
    segment_ids = jnp.asarray(np.repeat([[1, 2, 3, 4]], 256, axis=1), jnp.int32)
    truth = TRUTH(*(x.astype(jnp.float32) for x in operands), segment_ids)
    ours = errors(COMPILED["bfloat16"](*operands, segment_ids), truth)
    splash = functools.partial(splash_attention, block=256, interpret=True)
    theirs = errors(value_and_gradients(splash, *operands, segment_ids), truth)
    assert ours[0] <= 1.15 * theirs[0], (ours, theirs)
    assert all(a <= b for a, b in zip(ours[1:], theirs[1:], strict=True)), (ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": (1, 100, 2, 64)}, "must have the batch, length and head_dim of query"),
        ({"query": (2, 256, 2, 64)}, "must have the batch, length and head_dim of query"),
        ({"query": (256, 2, 64)}, r"query must be \(batch"),
        ({"value": (1, 256, 1, 128)}, "key and value .* got"),
        ({"query": (1, 256, 3, 64), "key": (1, 256, 2, 64)}, "heads=3 must be a multiple"),
        ({"key": (1, 256, 0, 64)}, "dimensions must not be empty"),
        ({"query": (1, 256, 2, 96), "key": (1, 256, 1, 96)}, "head_dim=96 must be one of"),
        (
            {"query": (1, 200, 2, 64), "key": (1, 200, 1, 64)},
            "length=200 must be a multiple of 128",
        ),
        (
            {"query": (1, 131200, 2, 64), "key": (1, 131200, 1, 64)},
            "length=131200 must be a multiple of 128, at most 131072",
        ),
        ({"dtype": "float16"}, "must all be bfloat16 or all float32"),
        ({"query dtype": "bfloat16"}, "got bfloat16, float32 and float32"),
        ({"segment_ids": (1, 128)}, r"segment_ids must be int32 \(1, 256\)"),
        ({"segment_ids": (256,)}, r"segment_ids must be int32 \(1, 256\)"),
        ({"ids dtype": "float32"}, "segment_ids must be int32 .* got float32"),
        ({"chunks": 2, "query": (1, 128, 2, 64)}, "128 queries must be 2 chunks of equal length"),
        ({"chunks": 2, "query": (1, 768, 2, 64)}, "768 queries must be 2 chunks .* length 256"),
    ],
)
def test_unsupported_shapes_and_types_are_rejected(change, message):
    shapes = {"query": (1, 256, 2, 64), "key": (1, 256, 1, 64), "segment_ids": (1, 256)} | change
    dtype = shapes.get("dtype", "float32")
    query = jax.ShapeDtypeStruct(shapes["query"], shapes.get("query dtype", dtype))
    key = jax.ShapeDtypeStruct(shapes["key"], dtype)
    value = jax.ShapeDtypeStruct(shapes.get("value", shapes["key"]), dtype)
    ids = jax.ShapeDtypeStruct(shapes["segment_ids"], shapes.get("ids dtype", "int32"))
    chunks = jax.ShapeDtypeStruct((shapes["chunks"],), "int32") if "chunks" in shapes else None

    def attention(query, key, value, ids, chunks):
        return flash_attention.__wrapped__(query, key, value, ids, chunks=chunks)

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(attention, query, key, value, ids, chunks)


def test_default_block_sizes_without_a_tpu():
    assert current_block_sizes() == BlockSizes()
