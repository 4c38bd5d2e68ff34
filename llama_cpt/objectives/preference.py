"""Preference objectives: log-probabilities of answers, their loss, and TRL's metrics.

The weight is the number of pairs (``kto``: of answers), and no term averages over the tokens of
more than one pair, so that sums over micro-batches are exact. Only ``kto`` depends on how a batch
is cut, because each micro-batch estimates the divergence from its own answers.
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
"""Metrics by name, each the sum of its values and the sum of their weights."""


def segment_logprobs(
    model: Llama, rows: TokenBatch, num_segments: int, *, loss_chunk_tokens: int
) -> Float[Array, "batch segments"]:
    """Return the summed log-probability, in nats, of each segment's targets, float32.

    ``rows.loss_mask`` selects the targets. Segment s of a row (1 to ``num_segments``) is in column
    s - 1. Gradients flow to the model.
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
    """Return the sum of the loss over the present pairs, the number of these, and the metrics.

    The loss is the entry of ``LOSSES`` that ``config`` names, plus ``nll_weight`` times the NLL of
    the chosen answer. The metrics have TRL's names; ``nll`` is the mean over pairs of the chosen
    answer's nats per token.
    """
    answers = _answers(model, batch, loss_chunk_tokens)
    # The two answers of a pair are successive segments of a row, the chosen one first.
    chosen, rejected = _every_other(answers, 0), _every_other(answers, 1)
    present = batch.pair_mask
    loss = LOSSES[config.loss]
    pair_loss = loss.bind(config)(chosen, rejected) - config.nll_weight * chosen.mean
    # Without a reference there is no log-ratio; TRL reports means over tokens for these losses.
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
    # A row has room for the most pairs of any row; ``present`` leaves out the places without one.
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
    """Return the sum of KTO's loss over the present answers, their number, and the metrics.

    In the names of the metrics, ``chosen`` means good answers and ``rejected`` bad ones.
    """
    segments = _answers(model, batch, loss_chunk_tokens)
    # Each judged answer is followed by a mismatched one, which serves the estimate of the
    # divergence only.
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
    """Return the answers of all segments, arrays (batch, segments)."""
    rows, reference = batch.rows, batch.reference_logprobs
    num_segments = reference.shape[-1]
    logprobs = segment_logprobs(model, rows, num_segments, loss_chunk_tokens=loss_chunk_tokens)
    tokens = _by_segment(rows.loss_mask, rows.segment_ids, num_segments)
    return Answers(logprobs, reference, tokens)


def _every_other(segments: Answers, first: int) -> Answers:
    """Return every second segment's answer, beginning with segment ``first`` of a row."""
    return Answers(*(part[:, first::2] for part in segments))


def _by_segment(
    values: Float[Array, "batch length"], segment_ids: Int[Array, "batch length"], num_segments: int
) -> Float[Array, "batch segments"]:
    """Return the sum of ``values`` over each segment."""
    # Not a matrix product, because a TPU would round its operands to bfloat16.
    member = jax.nn.one_hot(segment_ids - 1, num_segments, dtype=jnp.float32)
    return jnp.sum(values[..., None] * member, axis=1)


def _sum(
    values: Float[Array, "batch answers"], present: Float[Array, "batch answers"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the sum of the present values and their number."""
    return jnp.sum(values * present), jnp.sum(present)


def _by_corpus(
    values: Float[Array, "batch answers"],
    present: Float[Array, "batch answers"],
    rows: TokenBatch,
    num_corpora: int,
) -> tuple[Float[Array, " corpora"], Float[Array, " corpora"]]:
    """Return the sum and the weight of each corpus; a row belongs to one corpus."""
    member = jax.nn.one_hot(rows.corpus[:, 0], num_corpora, dtype=jnp.float32)

    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sum(x, axis=1, keepdims=True) * member, axis=0)

    return total(values * present), total(present)
