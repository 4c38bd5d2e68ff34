"""The preference losses, one loss a pair or a judged answer, in nats.

Letters: p the policy's log-probability of an answer, q the reference's, n its counted tokens,
r = p - q its log-ratio; subscripts w and l are the chosen (won) and the rejected (lost) answer of a
pair; s is the logistic function.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PairLoss = Float[Array, "*pairs"]

# An answer of probability 1 has infinite odds: float32's next to it.
_LARGEST_MEAN = -1e-6


class Answers(NamedTuple):
    """One answer of every pair: log-probabilities in nats under the policy and the reference."""

    logprobs: Float[Array, "*pairs"]
    reference: Float[Array, "*pairs"]
    tokens: Float[Array, "*pairs"]
    """How many tokens the log-probabilities are sums over; 0 counts as 1."""

    @property
    def log_ratio(self) -> Float[Array, "*pairs"]:
        """p - q."""
        return self.logprobs - self.reference

    @property
    def mean(self) -> Float[Array, "*pairs"]:
        """p / n, nats a token."""
        return self.logprobs / jnp.maximum(self.tokens, 1.0)

    @property
    def mean_log_ratio(self) -> Float[Array, "*pairs"]:
        """(p - q) / n, nats a token."""
        return self.log_ratio / jnp.maximum(self.tokens, 1.0)


def sigmoid(chosen: Answers, rejected: Answers, *, beta: float, label_smoothing: float) -> PairLoss:
    """DPO: -(1 - e) log s(beta (r_w - r_l)) - e log s(-beta (r_w - r_l)).

    Rafailov et al. 2023, arXiv 2305.18290, equation 7; e = ``label_smoothing`` above 0 is
    Mitchell's conservative DPO (2023, ericmitchell.ai/cdpo.pdf, equation 3).
    """
    margin = beta * (chosen.log_ratio - rejected.log_ratio)
    right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def robust(chosen: Answers, rejected: Answers, *, beta: float, label_smoothing: float) -> PairLoss:
    """[-(1 - e) log s(beta (r_w - r_l)) + e log s(-beta (r_w - r_l))] / (1 - 2 e).

    Unbiased where a share e = ``label_smoothing`` of the preferences is flipped: Chowdhury, Kini,
    Natarajan 2024, arXiv 2403.00409, section 3, rDPO.
    """
    margin = beta * (chosen.log_ratio - rejected.log_ratio)
    right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return (label_smoothing * wrong - (1 - label_smoothing) * right) / (1 - 2 * label_smoothing)


def hinge(chosen: Answers, rejected: Answers, *, beta: float) -> PairLoss:
    """max(0, 1 - beta (r_w - r_l)).

    SLiC's rank loss (Zhao et al. 2023, arXiv 2305.10425, equation 1) on DPO's rewards, as in RSO
    (Liu et al. 2023, arXiv 2309.06657, section 2).
    """
    return jax.nn.relu(1 - beta * (chosen.log_ratio - rejected.log_ratio))


def ipo(chosen: Answers, rejected: Answers, *, beta: float) -> PairLoss:
    """(r_w / n_w - r_l / n_l - 1 / (2 beta))^2.

    Azar et al. 2023, arXiv 2310.12036, equation 17, on means over tokens: so the authors computed
    it, as TRL's source tells; the equation itself has sums.
    """
    margin = chosen.mean_log_ratio - rejected.mean_log_ratio
    return jnp.square(margin - 1 / (2 * beta))


def sigmoid_norm(chosen: Answers, rejected: Answers, *, beta: float) -> PairLoss:
    """-log s(beta (r_w / n_w - r_l / n_l)): DPO on means over tokens (TRL's ``sigmoid_norm``)."""
    return -jax.nn.log_sigmoid(beta * (chosen.mean_log_ratio - rejected.mean_log_ratio))


def simpo(chosen: Answers, rejected: Answers, *, beta: float, gamma: float) -> PairLoss:
    """-log s(beta (p_w / n_w - p_l / n_l) - gamma), without a reference.

    Meng, Xia, Chen 2024, arXiv 2405.14734, equation 6.
    """
    return -jax.nn.log_sigmoid(beta * (chosen.mean - rejected.mean) - gamma)


def orpo(chosen: Answers, rejected: Answers, *, beta: float) -> PairLoss:
    """-p_w / n_w - beta log s(log odds_w - log odds_l), odds = P / (1 - P), P = exp(p / n).

    Hong, Lee, Thorne 2024, arXiv 2403.07691, equations 6 and 7 (``beta`` is their lambda); without
    a reference. The NLL is that of the answer alone; TRL counts the prompt's tokens too.
    """
    log_odds = _log_odds(chosen.mean) - _log_odds(rejected.mean)
    return -chosen.mean - beta * jax.nn.log_sigmoid(log_odds)


def kto(  # noqa: PLR0913 - two judgements have two weights
    answers: Answers,
    good: Float[Array, "*answers"],
    divergence: Float[Array, ""],
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Float[Array, "*answers"]:
    """w_good (1 - s(beta (r - z))) where ``good`` is 1, w_bad (1 - s(beta (z - r))) where it is 0.

    Ethayarajh et al. 2024, arXiv 2402.01306, equation 7; z = ``divergence`` is ``kto_divergence``.
    """
    reward = beta * (answers.log_ratio - divergence)
    desirable = desirable_weight * jax.nn.sigmoid(-reward)
    return jnp.where(good > 0, desirable, undesirable_weight * jax.nn.sigmoid(reward))


def kto_divergence(mismatched: Answers, present: Float[Array, "*answers"]) -> Float[Array, ""]:
    """max(0, mean r) over the mismatched answers that are ``present``; no gradient flows.

    Ethayarajh et al. 2024, arXiv 2402.01306, section 4.1: z_0.
    """
    total = jnp.sum(present * mismatched.log_ratio)
    mean = total / jnp.maximum(jnp.sum(present), 1.0)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


def _log_odds(mean: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
    """log(P / (1 - P)) of P = exp(mean)."""
    mean = jnp.minimum(mean, _LARGEST_MEAN)
    return mean - jnp.log(-jnp.expm1(mean))
