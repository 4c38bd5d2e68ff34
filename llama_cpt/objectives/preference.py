"""Preference objectives: log-probabilities of answers, their loss, and TRL's metrics.

The weight is the number of pairs (``kto``: of answers), and every term is a mean over a pair's own
tokens or none, so that the sums over micro-batches are exact. ``kto`` alone depends on how a batch
is cut: its estimate of the divergence is one micro-batch's.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_cpt.config.schema import PreferenceConfig
from llama_cpt.data.batch import PreferenceBatch, TokenBatch, UnpairedBatch
from llama_cpt.model.llama import Llama
from llama_cpt.objectives import preference_losses as losses
from llama_cpt.objectives.cross_entropy import token_nll
from llama_cpt.objectives.preference_losses import Answers

Sums = dict[str, tuple[jax.Array, jax.Array]]

REFERENCE_FREE = ("simpo", "orpo")
"""Losses that read no reference log-probabilities."""


def segment_logprobs(
    model: Llama, rows: TokenBatch, num_segments: int, *, loss_chunk_tokens: int
) -> Float[Array, "batch segments"]:
    """Summed log-probability, in nats, of each segment's targets that ``rows.loss_mask`` counts.

    Segment s of a row (1 to ``num_segments``) is in column s - 1. Gradients flow.
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
    """The loss that ``config`` names, summed over the pairs that are there; their number.

    ``sums`` by TRL's names; ``nll`` is the NLL term, the mean over pairs of the chosen answer's
    nats a token.
    """
    answers = _answers(model, batch, loss_chunk_tokens)
    chosen, rejected = _every_other(answers, 0), _every_other(answers, 1)
    present = batch.pair_mask
    pair_loss = _pair_loss(config)(chosen, rejected) - config.nll_weight * chosen.mean
    mean = config.loss in REFERENCE_FREE
    rewards = [config.beta * (part.mean if mean else part.log_ratio) for part in (chosen, rejected)]
    values = {
        "rewards/chosen": rewards[0],
        "rewards/rejected": rewards[1],
        "rewards/accuracies": (rewards[0] > rewards[1]).astype(jnp.float32),
        "logps/chosen": chosen.mean if mean else chosen.logprobs,
        "logps/rejected": rejected.mean if mean else rejected.logprobs,
        "nll": -chosen.mean,
    }
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
    """KTO summed over the answers that are there; their number.

    ``chosen`` in the names of ``sums`` is the good answers, ``rejected`` the bad ones.
    """
    segments = _answers(model, batch, loss_chunk_tokens)
    answers, mismatched = _every_other(segments, 0), _every_other(segments, 1)
    present = batch.answer_mask
    divergence = losses.kto_divergence(mismatched, present)
    answer_loss = losses.kto(
        answers,
        batch.good,
        divergence,
        beta=config.beta,
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
    )
    sums = {"kl": _sum(jnp.full(present.shape, divergence), present)}
    for name, judged in (("chosen", batch.good), ("rejected", 1 - batch.good)):
        sums[f"rewards/{name}"] = _sum(config.beta * answers.log_ratio, present * judged)
        sums[f"logps/{name}"] = _sum(answers.logprobs, present * judged)
    sums["corpus_loss"] = _by_corpus(answer_loss, present, batch.rows, num_corpora)
    return *_sum(answer_loss, present), sums


def _pair_loss(config: PreferenceConfig) -> Any:
    """``(chosen, rejected) -> losses`` of the loss that the config names."""
    beta, smoothing = config.beta, config.label_smoothing
    match config.loss:
        case "sigmoid":
            return partial(losses.sigmoid, beta=beta, label_smoothing=smoothing)
        case "robust":
            return partial(losses.robust, beta=beta, label_smoothing=smoothing)
        case "simpo":
            return partial(losses.simpo, beta=beta, gamma=config.gamma)
        case "hinge":
            return partial(losses.hinge, beta=beta)
        case "ipo":
            return partial(losses.ipo, beta=beta)
        case "sigmoid_norm":
            return partial(losses.sigmoid_norm, beta=beta)
        case "orpo":
            return partial(losses.orpo, beta=beta)
    raise ValueError(f"{config.loss} is no loss of pairs")


def _answers(
    model: Llama, batch: PreferenceBatch | UnpairedBatch, loss_chunk_tokens: int
) -> Answers:
    """Of every segment, (batch, segments)."""
    rows, reference = batch.rows, batch.reference_logprobs
    num_segments = reference.shape[-1]
    logprobs = segment_logprobs(model, rows, num_segments, loss_chunk_tokens=loss_chunk_tokens)
    tokens = _by_segment(rows.loss_mask, rows.segment_ids, num_segments)
    return Answers(logprobs, reference, tokens)


def _every_other(segments: Answers, first: int) -> Answers:
    return Answers(*(part[:, first::2] for part in segments))


def _by_segment(
    values: Float[Array, "batch length"], segment_ids: Int[Array, "batch length"], num_segments: int
) -> Float[Array, "batch segments"]:
    # Not a matrix product: a TPU would round its operands to bfloat16.
    member = jax.nn.one_hot(segment_ids - 1, num_segments, dtype=jnp.float32)
    return jnp.sum(values[..., None] * member, axis=1)


def _sum(
    values: Float[Array, "batch answers"], present: Float[Array, "batch answers"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    return jnp.sum(values * present), jnp.sum(present)


def _by_corpus(
    values: Float[Array, "batch answers"],
    present: Float[Array, "batch answers"],
    rows: TokenBatch,
    num_corpora: int,
) -> tuple[Float[Array, " corpora"], Float[Array, " corpora"]]:
    """Sum and weight of each corpus; a row is of one."""
    member = jax.nn.one_hot(rows.corpus[:, 0], num_corpora, dtype=jnp.float32)

    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sum(x, axis=1, keepdims=True) * member, axis=0)

    return total(values * present), total(present)
