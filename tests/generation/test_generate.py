"""Each row's generated tokens equal those of transformers and of the full forward pass."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.llama3.models import LLAMA3_8B
from llama_cpt.config.schema import MeshConfig
from llama_cpt.generation.decoder import compute_logits, decode, make_decoder, prefill
from llama_cpt.generation.generate import (
    TOKENS_PER_CALL,
    advance,
    generate,
    pad_prompts,
    start,
    stream,
)
from llama_cpt.generation.lowering import lower_decode, lower_prefill
from llama_cpt.generation.sampling import Sampling
from llama_cpt.hardware.chips import CHIPS
from llama_cpt.model.llama import Llama
from llama_cpt.parallel.mesh import make_mesh, shardings, topology_mesh
from llama_cpt.planning import compiling
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.hf_weights import load_hf
from tests.model.test_llama import TINY

LENGTHS = (5, 41, 1, 23)
WARM = Sampling(temperature=1.5, top_k=40, top_p=0.98, min_p=0.01, seed=7)


def prompts(vocab_size: int) -> list[list[int]]:
    draw = np.random.default_rng(2)
    return [draw.integers(2, vocab_size, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def model() -> Llama:
    """Random weights, scaled by 8 so that greedy decoding does not repeat one token."""
    drawn = Llama(TINY, jax.random.key(3))
    return jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, drawn)


@pytest.fixture(scope="module")
def decoder(model):
    return make_decoder(model)


def names() -> list:
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")):
        return []
    from tests.weights.test_hf_parity import VARIANTS

    # This one covers grouped queries and scaled RoPE angles.
    fast = {"llama3_rope_tied_gqa"}
    slow = pytest.mark.slow
    return [pytest.param(name, marks=() if name in fast else slow) for name in VARIANTS]


@pytest.mark.parametrize("name", names())
def test_greedy_ids_equal_transformers(name, tmp_path):
    from tests.weights.hf_models import SMALL, save_llama
    from tests.weights.test_hf_parity import VARIANTS

    path = save_llama(tmp_path, **VARIANTS[name])
    rows = prompts({**SMALL, **VARIANTS[name]}["vocab_size"])
    ours = generate(make_decoder(load_hf(path)), rows, max_new_tokens=64)
    assert ours == transformers_greedy(path, rows, 64)


def transformers_greedy(path: str, rows: list[list[int]], count: int) -> list[list[int]]:
    """Return greedy continuations by transformers.

    The prompts are padded on the left, as the tokenizers of transformers do for generation.
    """
    import torch
    import transformers

    torch.set_num_threads(1)
    theirs: Any = transformers.LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    out = theirs.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return out[:, longest:].tolist()


def test_decode_logits_equal_the_full_forward(model, decoder):
    rows = np.random.default_rng(4).integers(0, TINY.vocab_size, (4, 60), dtype=np.int32)
    every = jnp.broadcast_to(jnp.arange(60), rows.shape)
    full = np.asarray(jax.jit(Llama.__call__)(model, rows, every, jnp.ones_like(every)))
    tokens, lengths = pad_prompts(
        [row[:size].tolist() for row, size in zip(rows, LENGTHS, strict=True)]
    )
    hidden, cache = jax.jit(prefill, static_argnames="columns")(
        decoder, tokens, lengths, columns=256
    )
    for row, size in enumerate(LENGTHS):
        got = np.asarray(compute_logits(decoder, hidden[row, :size]))
        np.testing.assert_allclose(got, full[row, :size], atol=1e-4, rtol=0)
    step = jax.jit(decode)
    for ahead in range(12):
        at = lengths + ahead
        new, cache = step(decoder, cache, rows[range(4), at])
        got = compute_logits(decoder, new)
        np.testing.assert_allclose(got, full[range(4), at], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=["greedy", "sampled"])
def test_rows_are_independent(decoder, sampling):
    first, second, *others = prompts(TINY.vocab_size)
    together = generate(decoder, [first, second, *others], max_new_tokens=20, sampling=sampling)
    assert generate(decoder, [first], max_new_tokens=20, sampling=sampling) == together[:1]
    assert generate(decoder, [first, second], max_new_tokens=20, sampling=sampling) == together[:2]


def test_randomness_depends_on_the_seed_only(decoder):
    rows = prompts(TINY.vocab_size)
    texts = [
        generate(decoder, rows, max_new_tokens=20, sampling=Sampling(temperature=1.0, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_row_ends_before_its_stop_token(decoder):
    rows = prompts(TINY.vocab_size)
    free = generate(decoder, rows, max_new_tokens=20)
    stop = free[1][9]
    ended = generate(decoder, rows, max_new_tokens=20, stop_ids=[stop, 63])
    for whole, part in zip(free, ended, strict=True):
        ends = [at for at, token in enumerate(whole) if token in (stop, 63)]
        assert part == whole[: min(ends, default=20)]
    calls = list(stream(decoder, rows[1:2], max_new_tokens=20, stop_ids=[stop]))
    assert len(calls) == free[1].index(stop) // TOKENS_PER_CALL + 1


def test_batch_size_and_bucket_compile_once(decoder):
    rows = prompts(TINY.vocab_size)[:3]
    generate(decoder, rows, max_new_tokens=20)
    programs: tuple[Any, ...] = (start, advance)
    before = [program._cache_size() for program in programs]
    generate(decoder, [row + [5] for row in rows], max_new_tokens=9, sampling=WARM, stop_ids=[1, 2])
    assert [program._cache_size() for program in programs] == before


@pytest.mark.slow
def test_tokens_do_not_depend_on_the_mesh(model, decoder):
    rows = prompts(TINY.vocab_size)[:3]
    expected = generate(decoder, rows, max_new_tokens=16, sampling=WARM)
    mesh = make_mesh(MeshConfig(1, 2, 2), jax.devices()[:4])
    spread = make_decoder(jax.device_put(model, shardings(model, mesh)), mesh)
    assert generate(spread, rows, max_new_tokens=16, sampling=WARM, mesh=mesh) == expected


@pytest.mark.parametrize(
    ("rows", "count", "message"),
    [
        ([[1], []], 5, "prompt 1 is empty"),
        ([[1] * 60], 5, "context of 64"),
        ([[64]], 5, "outside"),
        ([[1]], 0, "max_new_tokens"),
    ],
)
def test_refused(decoder, rows, count, message):
    with pytest.raises(UserError, match=message):
        generate(decoder, rows, max_new_tokens=count)


MEMORY = {chip.name: chip.memory_bytes for chip in CHIPS.values()}


@pytest.mark.libtpu
def test_decode_compiles_for_a_tpu():
    topology, mesh = "v5e:2x2", MeshConfig(1, 2, 2)
    lowered = lower_decode(TINY, mesh, topology, rows=4, columns=128)
    made = compiling.compile_program(lowered, topology_mesh(mesh, topology))
    assert not isinstance(made, compiling.OutOfMemory)
    # The cache is updated in place.
    cache_bytes = 2 * TINY.num_layers * 128 * TINY.num_kv_heads * TINY.head_dim * 2
    assert made.aliased >= cache_bytes


@pytest.mark.libtpu
@pytest.mark.slow
def test_8b_fits():
    topology, mesh = "v5e:2x4", MeshConfig(1, 1, 8)
    lowered = (
        lower_decode(LLAMA3_8B, mesh, topology, rows=16, columns=8192),
        lower_prefill(LLAMA3_8B, mesh, topology, rows=16, length=4096, columns=8192),
    )
    for one in lowered:
        made = compiling.compile_program(one, topology_mesh(mesh, topology))
        assert not isinstance(made, compiling.OutOfMemory)
        assert 0 < made.peak < MEMORY[topology.split(":")[0]]
