"""Streamed generation for batches of ragged prompts, a few tokens per call.

Lengths are rounded up to a few buckets. Each batch size and bucket is compiled once, whatever the
prompts, the sampling and the number of requested tokens.
"""

from collections.abc import Iterator, Sequence
import contextlib
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int
import numpy as np

from llama_cpt.data.batch import Leaf
from llama_cpt.generation.decoder import Cache, Decoder, compute_logits, decode, prefill
from llama_cpt.generation.sampling import Sampling, Settings, sample
from llama_cpt.parallel.mesh import BATCH_AXES, constrain
from llama_cpt.runtime.errors import UserError

MIN_BUCKET = 128
"""Columns of the smallest bucket; the attention kernels for TPUs require multiples of it."""
TOKENS_PER_CALL = 8
"""Maximum number of tokens per row that one call of the compiled program generates."""
STOP_IDS = 8
"""Stop tokens are padded to a multiple of this, so that their number rarely recompiles."""
NO_TOKEN = -1
"""Filler for rows that have stopped, and for unused stop tokens."""
GREEDY = Sampling()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GenerationState:
    """The state of a batch between two calls."""

    cache: Cache
    logits: Leaf
    """float32 (batch, vocab): logits of the next token."""
    stopped: Leaf
    """bool (batch,): rows that have reached a stop token."""


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    sampling: Sampling = GREEDY,
    mesh: Mesh | None = None,
) -> list[list[int]]:
    """Return the continuation of each prompt, up to but without its first stop token.

    ``mesh`` is the mesh of the weights; None means one device. Raises UserError for an empty prompt
    and for one that leaves no room in the model's context.
    """
    rows: list[list[int]] = [[] for _ in prompts]
    options = {"max_new_tokens": max_new_tokens, "stop_ids": stop_ids, "sampling": sampling}
    for new in stream(decoder, prompts, **options, mesh=mesh):
        for row, tokens in zip(rows, new, strict=True):
            row += tokens
    return rows


def stream(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    sampling: Sampling = GREEDY,
    mesh: Mesh | None = None,
) -> Iterator[list[list[int]]]:
    """Yield each row's new tokens, up to ``TOKENS_PER_CALL`` at a time, as in ``generate``."""
    require_context_room(decoder, prompts, max_new_tokens)
    tokens, lengths = pad_prompts(prompts, row_multiple=_row_multiple(mesh))
    columns = bucket_length(tokens.shape[1] + max_new_tokens)
    stops = stop_array(stop_ids)
    context = partial(jax.set_mesh, mesh) if mesh else contextlib.nullcontext
    with context():
        state = start(decoder, tokens, lengths, columns=columns)
    state = replace(state, stopped=np.arange(len(lengths)) >= len(prompts))
    for done in range(0, max_new_tokens, TOKENS_PER_CALL):
        count = np.int32(min(TOKENS_PER_CALL, max_new_tokens - done))
        with context():
            state, new = advance(decoder, state, count, stops, sampling.settings())
        new, finished = np.asarray(new)[: len(prompts)], np.asarray(state.stopped).all()
        yield [[int(token) for token in row if token != NO_TOKEN] for row in new]
        if finished:
            return


@partial(jax.jit, static_argnames="columns")
def start(
    decoder: Decoder,
    tokens: Int[Array, "batch length"],
    lengths: Int[Array, " batch"],
    *,
    columns: int,
) -> GenerationState:
    """Read the prompts; return the state before the first generated token."""
    hidden, cache = prefill(decoder, tokens, lengths, columns=columns)
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    return GenerationState(cache, compute_logits(decoder, last), jnp.zeros(lengths.shape, bool))


@partial(jax.jit, donate_argnames="state")
def advance(
    decoder: Decoder,
    state: GenerationState,
    count: Int[Array, ""],
    stop_ids: Int[Array, " stops"],
    settings: Settings,
) -> tuple[GenerationState, Int[Array, "batch call"]]:
    """Generate up to ``count`` (at most ``TOKENS_PER_CALL``) more tokens for each row.

    A row holds ``NO_TOKEN`` from its stop token on. Ends early if all rows have stopped.
    """
    batch = state.stopped.shape[0]
    rows = jnp.arange(batch)

    def unfinished(carried: tuple) -> jax.Array:
        done, state, _ = carried
        return (done < count) & ~state.stopped.all()

    def one(carried: tuple) -> tuple:
        done, state, new = carried
        token = sample(state.logits, settings, rows, state.cache.lengths)
        stopped = state.stopped | (token[:, None] == stop_ids[None]).any(-1)
        new = new.at[:, done].set(jnp.where(stopped, NO_TOKEN, token))
        hidden, cache = decode(decoder, state.cache, token)
        return done + 1, GenerationState(cache, compute_logits(decoder, hidden), stopped), new

    new = jnp.full((batch, TOKENS_PER_CALL), NO_TOKEN, jnp.int32)
    _, state, new = jax.lax.while_loop(unfinished, one, (jnp.int32(0), state, new))
    # Replicated, because every process reads the whole array.
    return replace(state, stopped=constrain(state.stopped)), constrain(new)


def bucket_length(length: int) -> int:
    """Return the smallest power of two, at least ``MIN_BUCKET``, that is not below ``length``."""
    return max(MIN_BUCKET, 1 << (length - 1).bit_length())


def pad_prompts(
    prompts: Sequence[Sequence[int]], *, row_multiple: int = 1
) -> tuple[Int[np.ndarray, "batch length"], Int[np.ndarray, " batch"]]:
    """Return the prompts, padded on the right to a bucket's length, and their lengths.

    Rows of one token are added until their number is a multiple of ``row_multiple``.
    """
    rows = -(-len(prompts) // row_multiple) * row_multiple
    lengths = np.ones(rows, np.int32)
    lengths[: len(prompts)] = [len(prompt) for prompt in prompts]
    tokens = np.zeros((rows, bucket_length(int(lengths.max()))), np.int32)
    for row, prompt in zip(tokens, prompts, strict=False):
        row[: len(prompt)] = prompt
    return tokens, lengths


def require_context_room(
    decoder: Decoder, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    """Raise UserError unless every prompt is valid and leaves ``max_new_tokens`` in the context."""
    if not prompts or max_new_tokens < 1:
        raise UserError("generation needs a prompt and max_new_tokens of 1 or more.")
    config = decoder.ends.config
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"prompt {number} is empty; begin it with BOS.")
        if len(prompt) + max_new_tokens > config.context_length:
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens: with max_new_tokens={max_new_tokens} "
                f"that is over the model's context of {config.context_length}; shorten it."
            )
        if not all(0 <= token < config.vocab_size for token in prompt):
            raise UserError(
                f"prompt {number} holds an id outside [0, {config.vocab_size}); check the "
                "tokenizer."
            )


def _row_multiple(mesh: Mesh | None) -> int:
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES])) if mesh else 1


def stop_array(stop_ids: Sequence[int]) -> Int[np.ndarray, " stops"]:
    """Return ``stop_ids`` padded for ``advance``."""
    size = -(-max(len(stop_ids), 1) // STOP_IDS) * STOP_IDS
    return np.array([*stop_ids, *[NO_TOKEN] * (size - len(stop_ids))], np.int32)
