"""Preference objectives: log-probabilities of answers, preference losses, and TRL's metrics.

The weight of an objective is the number of pairs, or, for ``kto``, the number of answers. No term
is a mean over tokens of several pairs, so the sums over micro-batches are exact. Only ``kto``
depends on the division of a batch into micro-batches, because the KL divergence is estimated
separately for each micro-batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_cpt.config.schema import PreferenceConfig
from llama_cpt.data.batch import PreferenceBatch, TokenBatch, UnpairedBatch
from llama_cpt.model.llama import Llama
from llama_cpt.objectives.cross_entropy import token_nll
from llama_cpt.objectives.preference_losses import LOSSES, Answers, kto_divergence

Sums = dict[str, tuple[jax.Array, jax.Array]]
"""A dict from a metric's name to the sum of its values and the sum of their weights."""


def segment_logprobs(
    model: Llama, rows: TokenBatch, num_segments: int, *, loss_chunk_tokens: int
) -> Float[Array, "batch segments"]:
    """Return the summed log-probability in nats of each segment's targets, float32.

    Only the targets in ``rows.loss_mask`` are summed. Column s - 1 of the result belongs to segment
    s of a row, for s from 1 to ``num_segments``. The result is differentiable.
    """
    hidden = model.hidden(rows.tokens, rows.positions, rows.segment_ids)
    with jax.named_scope("loss"):
        nll = token_nll(hidden, model.head, rows.targets, loss_chunk_tokens)
    return _by_segment(-nll * rows.loss_mask, rows.segment_ids, num_segments)


def preference_loss(
    model: Llama,
    batch: PreferenceBatch,
    *,
    config: PreferenceConfig,
    num_corpora: int,
    loss_chunk_tokens: int,
) -> tuple[Float[Array, ""], Float[Array, ""], Sums]:
    """Return the loss sum over the pairs in ``batch``, the number of pairs, and the metrics.

    The loss of a pair is the loss ``config.loss`` in ``LOSSES``, plus ``nll_weight`` times the mean
    NLL per token of the chosen answer. The metrics have the same names as in TRL. The metric
    ``nll`` is the mean NLL per token of the chosen answer, in nats, averaged over pairs.
    """
    answers = _answers(model, batch, loss_chunk_tokens)
    # The two answers of a pair are successive segments of a row; the chosen answer is the first.
    chosen, rejected = _every_other(answers, 0), _every_other(answers, 1)
    present = batch.pair_mask
    loss = LOSSES[config.loss]
    pair_loss = loss.bind(config)(chosen, rejected) - config.nll_weight * chosen.mean
    # Reference-free losses have no log-ratio. For them, TRL reports means over tokens.
    mean = loss.reference_free
    rewards = [config.beta * (part.mean if mean else part.log_ratio) for part in (chosen, rejected)]
    values = {
        "rewards/chosen": rewards[0],
        "rewards/rejected": rewards[1],
        "rewards/accuracies": (rewards[0] > rewards[1]).astype(jnp.float32),
        "logps/chosen": chosen.mean if mean else chosen.logprobs,
        "logps/rejected": rejected.mean if mean else rejected.logprobs,
        "nll": -chosen.mean,
    }
    # All rows are padded to the same number of pairs; ``present`` is 0 for the padding.
    sums = {name: _sum(value, present) for name, value in values.items()}
    sums["corpus_loss"] = _by_corpus(pair_loss, present, batch.rows, num_corpora)
    return *_sum(pair_loss, present), sums


def kto_loss(
    model: Llama,
    batch: UnpairedBatch,
    *,
    config: PreferenceConfig,
    num_corpora: int,
    loss_chunk_tokens: int,
) -> tuple[Float[Array, ""], Float[Array, ""], Sums]:
    """Return KTO's loss sum over the rated answers, the number of answers, and the metrics.

    In the names of the metrics, ``chosen`` denotes answers rated good, and ``rejected`` denotes
    answers rated bad.
    """
    segments = _answers(model, batch, loss_chunk_tokens)
    # Each rated answer is followed by a mismatched answer, which is used only to estimate the
    # divergence.
    answers, mismatched = _every_other(segments, 0), _every_other(segments, 1)
    present = batch.answer_mask
    divergence = kto_divergence(mismatched, present)
    answer_loss = LOSSES[config.loss].bind(config)(answers, batch.good, divergence)
    sums = {"kl": _sum(jnp.full(present.shape, divergence), present)}
    for name, judged in (("chosen", batch.good), ("rejected", 1 - batch.good)):
        sums[f"rewards/{name}"] = _sum(config.beta * answers.log_ratio, present * judged)
        sums[f"logps/{name}"] = _sum(answers.logprobs, present * judged)
    sums["corpus_loss"] = _by_corpus(answer_loss, present, batch.rows, num_corpora)
    return *_sum(answer_loss, present), sums


def _answers(
    model: Llama, batch: PreferenceBatch | UnpairedBatch, loss_chunk_tokens: int
) -> Answers:
    """Score all answers of ``batch`` and return them as arrays of shape (batch, segments)."""
    rows, reference = batch.rows, batch.reference_logprobs
    num_segments = reference.shape[-1]
    logprobs = segment_logprobs(model, rows, num_segments, loss_chunk_tokens=loss_chunk_tokens)
    tokens = _by_segment(rows.loss_mask, rows.segment_ids, num_segments)
    return Answers(logprobs, reference, tokens)


def _every_other(segments: Answers, first: int) -> Answers:
    """Return the answers in columns ``first``, ``first`` + 2, ... of ``segments``."""
    return Answers(*(part[:, first::2] for part in segments))


def _by_segment(
    values: Float[Array, "batch length"], segment_ids: Int[Array, "batch length"], num_segments: int
) -> Float[Array, "batch segments"]:
    """Return the sum of ``values`` over the tokens of each segment."""
    # This is not a matrix product, because a TPU would round the operands to bfloat16.
    member = jax.nn.one_hot(segment_ids - 1, num_segments, dtype=jnp.float32)
    return jnp.sum(values[..., None] * member, axis=1)


def _sum(
    values: Float[Array, "batch answers"], present: Float[Array, "batch answers"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the sum and the number of the values whose ``present`` is 1."""
    return jnp.sum(values * present), jnp.sum(present)


def _by_corpus(
    values: Float[Array, "batch answers"],
    present: Float[Array, "batch answers"],
    rows: TokenBatch,
    num_corpora: int,
) -> tuple[Float[Array, " corpora"], Float[Array, " corpora"]]:
    """Return, per corpus, the sum and the number of the values whose ``present`` is 1.

    All answers of a row belong to the same corpus.
    """
    member = jax.nn.one_hot(rows.corpus[:, 0], num_corpora, dtype=jnp.float32)

    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sum(x, axis=1, keepdims=True) * member, axis=0)

    return total(values * present), total(present)
