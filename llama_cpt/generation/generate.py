"""Streamed generation for batches of prompts of different lengths.

The lengths of the prompts and of the cache are rounded up to powers of two, called buckets. One
program is compiled for each combination of batch size and buckets. The program supports all prompts
of these lengths and all sampling options.
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
from llama_cpt.generation.decoder import MIN_BUCKET, Cache, Decoder, compute_logits, decode, prefill
from llama_cpt.generation.sampling import Sampling, Settings, sample
from llama_cpt.parallel.mesh import BATCH_AXES, constrain
from llama_cpt.runtime.errors import UserError

TOKENS_PER_CALL = 8
"""Maximum number of tokens per row that one call of ``advance`` generates."""
STOP_IDS = 8
"""The list of stop tokens is padded to a multiple of STOP_IDS entries, so that lists of different
lengths use the same compiled program."""
NO_TOKEN = -1
"""The placeholder for tokens of rows that have stopped, and for padding of the stop tokens."""
GREEDY = Sampling()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GenerationState:
    """The state of a batch between two calls of ``advance``."""

    cache: Cache
    logits: Leaf
    """float32 (batch, vocab): the logits of the next token."""
    stopped: Leaf
    """bool (batch,): True for rows that have generated a stop token, and for padding rows."""


Carry = tuple[jax.Array, GenerationState, jax.Array]
"""The loop state of ``advance``: (number of generated tokens, state, generated tokens)."""


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    sampling: Sampling = GREEDY,
    mesh: Mesh | None = None,
) -> list[list[int]]:
    """Return the token ids that continue each prompt, up to but excluding the first stop token.

    ``mesh`` is the mesh of the weights; None means one device. Raises UserError if a prompt is
    empty, holds an invalid token id, or leaves no room for ``max_new_tokens`` in the model's
    context.
    """
    rows: list[list[int]] = [[] for _ in prompts]
    batches = stream(
        decoder,
        prompts,
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        sampling=sampling,
        mesh=mesh,
    )
    for new in batches:
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
    """Yield the new token ids of each prompt, at most ``TOKENS_PER_CALL`` ids per prompt at a time.

    The parameters and errors are those of ``generate``.
    """
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
    """Run the prefill, and return the state before the first generated token."""
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
    """Generate up to ``count`` more tokens for each row; ``count`` is at most ``TOKENS_PER_CALL``.

    Returns the new state and the tokens, of shape (batch, TOKENS_PER_CALL). A row's stop token and
    all later tokens are ``NO_TOKEN``. The loop ends early if all rows have stopped.
    """
    batch = state.stopped.shape[0]
    rows = jnp.arange(batch)

    def unfinished(carried: Carry) -> jax.Array:
        done, state, _ = carried
        return (done < count) & ~state.stopped.all()

    def one(carried: Carry) -> Carry:
        done, state, new = carried
        token = sample(state.logits, settings, rows, state.cache.lengths)
        stopped = state.stopped | (token[:, None] == stop_ids[None]).any(-1)
        new = new.at[:, done].set(jnp.where(stopped, NO_TOKEN, token))
        hidden, cache = decode(decoder, state.cache, token)
        return done + 1, GenerationState(cache, compute_logits(decoder, hidden), stopped), new

    new = jnp.full((batch, TOKENS_PER_CALL), NO_TOKEN, jnp.int32)
    _, state, new = jax.lax.while_loop(unfinished, one, (jnp.int32(0), state, new))
    # Both outputs are replicated, because every process reads the whole arrays.
    return replace(state, stopped=constrain(state.stopped)), constrain(new)


def bucket_length(length: int) -> int:
    """Return the smallest power of two that is at least ``length`` and ``MIN_BUCKET``."""
    return max(MIN_BUCKET, 1 << (length - 1).bit_length())


def pad_prompts(
    prompts: Sequence[Sequence[int]], *, row_multiple: int = 1
) -> tuple[Int[np.ndarray, "batch length"], Int[np.ndarray, " batch"]]:
    """Return the prompts as one array, padded on the right to a bucket, and their lengths.

    Padding rows of length 1 are added until the number of rows is a multiple of ``row_multiple``.
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
    """Raise UserError if a prompt is empty, holds an invalid token id, or is too long.

    A prompt is too long if it leaves no room for ``max_new_tokens`` in the model's context.
    """
    if not prompts or max_new_tokens < 1:
        raise UserError(
            f"{len(prompts)} prompts and max_new_tokens={max_new_tokens}: generation needs at "
            "least one prompt and one new token."
        )
    config = decoder.ends.config
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"prompt {number} is empty; begin the prompt with BOS.")
        if len(prompt) + max_new_tokens > config.context_length:
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens; with max_new_tokens={max_new_tokens} "
                f"it exceeds the model's context of {config.context_length}. Shorten the prompt."
            )
        if not all(0 <= token < config.vocab_size for token in prompt):
            raise UserError(
                f"prompt {number} holds an id outside [0, {config.vocab_size}); check the "
                "tokenizer."
            )


def _row_multiple(mesh: Mesh | None) -> int:
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES])) if mesh else 1


def stop_array(stop_ids: Sequence[int]) -> Int[np.ndarray, " stops"]:
    """Return ``stop_ids`` as an array, padded with ``NO_TOKEN`` to a multiple of ``STOP_IDS``."""
    size = -(-max(len(stop_ids), 1) // STOP_IDS) * STOP_IDS
    return np.array([*stop_ids, *[NO_TOKEN] * (size - len(stop_ids))], np.int32)
