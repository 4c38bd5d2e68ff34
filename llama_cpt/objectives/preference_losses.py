"""The preference losses and their table, one loss per pair or per judged answer, in nats.

``LOSSES`` is the only place that lists them. To add a loss, write its function, whose keyword-only
parameters are fields of ``PreferenceConfig``, and enter it with the source of its equation.

Letters: p the policy's log-probability of an answer, q the reference's, n its counted tokens,
r = p - q its log-ratio; subscripts w and l are the chosen (won) and the rejected (lost) answer of a
pair; s is the logistic function.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_cpt.config.schema import PreferenceConfig

PairLoss = Float[Array, "*pairs"]

# An answer of probability 1 has infinite odds, so the mean log-probability is clipped to a value
# that float32 distinguishes from 0.
_MAX_MEAN_LOGPROB = -1e-6


class Answers(NamedTuple):
    """One answer per pair: log-probabilities in nats under the policy and the reference."""

    logprobs: Float[Array, "*pairs"]
    reference: Float[Array, "*pairs"]
    tokens: Float[Array, "*pairs"]
    """Number of tokens that the log-probabilities are sums over; 0 (no answer) counts as 1."""

    @property
    def log_ratio(self) -> Float[Array, "*pairs"]:
        """The log-ratio r = p - q, in nats."""
        return self.logprobs - self.reference

    @property
    def mean(self) -> Float[Array, "*pairs"]:
        """The mean log-probability p / n, in nats per token."""
        return self.logprobs / jnp.maximum(self.tokens, 1.0)

    @property
    def mean_log_ratio(self) -> Float[Array, "*pairs"]:
        """The mean log-ratio (p - q) / n, in nats per token."""
        return self.log_ratio / jnp.maximum(self.tokens, 1.0)


def sigmoid(chosen: Answers, rejected: Answers, *, beta: float, label_smoothing: float) -> PairLoss:
    """Return DPO's loss, -(1 - e) log s(beta (r_w - r_l)) - e log s(-beta (r_w - r_l)).

    Rafailov et al. 2023, arXiv 2305.18290, equation 7; e = ``label_smoothing`` above 0 is
    Mitchell's conservative DPO (2023, ericmitchell.ai/cdpo.pdf, equation 3).
    """
    margin = beta * (chosen.log_ratio - rejected.log_ratio)
    right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def robust(chosen: Answers, rejected: Answers, *, beta: float, label_smoothing: float) -> PairLoss:
    """Return rDPO's loss, [-(1 - e) log s(x) + e log s(-x)] / (1 - 2 e).

    With x = beta (r_w - r_l), it is unbiased if a share e = ``label_smoothing`` of the preferences
    is flipped: Chowdhury, Kini, Natarajan 2024, arXiv 2403.00409, section 3.
    """
    margin = beta * (chosen.log_ratio - rejected.log_ratio)
    right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return (label_smoothing * wrong - (1 - label_smoothing) * right) / (1 - 2 * label_smoothing)


def hinge(chosen: Answers, rejected: Answers, *, beta: float) -> PairLoss:
    """Return the hinge loss max(0, 1 - beta (r_w - r_l)).

    This is SLiC's rank loss (Zhao et al. 2023, arXiv 2305.10425, equation 1) on DPO's rewards, as
    in RSO (Liu et al. 2023, arXiv 2309.06657, section 2).
    """
    return jax.nn.relu(1 - beta * (chosen.log_ratio - rejected.log_ratio))


def ipo(chosen: Answers, rejected: Answers, *, beta: float) -> PairLoss:
    """Return IPO's loss, (r_w / n_w - r_l / n_l - 1 / (2 beta))^2.

    Azar et al. 2023, arXiv 2310.12036, equation 17, on means over tokens. The equation itself has
    sums; according to TRL's source the authors computed it with means.
    """
    margin = chosen.mean_log_ratio - rejected.mean_log_ratio
    return jnp.square(margin - 1 / (2 * beta))


def sigmoid_norm(chosen: Answers, rejected: Answers, *, beta: float) -> PairLoss:
    """Return -log s(beta (r_w / n_w - r_l / n_l)), DPO on means over tokens.

    TRL's ``sigmoid_norm``.
    """
    return -jax.nn.log_sigmoid(beta * (chosen.mean_log_ratio - rejected.mean_log_ratio))


def simpo(chosen: Answers, rejected: Answers, *, beta: float, gamma: float) -> PairLoss:
    """Return SimPO's loss, -log s(beta (p_w / n_w - p_l / n_l) - gamma); it has no reference.

    Meng, Xia, Chen 2024, arXiv 2405.14734, equation 6.
    """
    return -jax.nn.log_sigmoid(beta * (chosen.mean - rejected.mean) - gamma)


def orpo(chosen: Answers, rejected: Answers, *, beta: float) -> PairLoss:
    """Return ORPO's loss, -p_w / n_w - beta log s(log odds_w - log odds_l); it has no reference.

    With odds = P / (1 - P) and P = exp(p / n): Hong, Lee, Thorne 2024, arXiv 2403.07691, equations
    6 and 7 (``beta`` is their lambda). The first term is the NLL of the answer alone; TRL counts
    the prompt's tokens too.
    """
    log_odds = _log_odds(chosen.mean) - _log_odds(rejected.mean)
    return -chosen.mean - beta * jax.nn.log_sigmoid(log_odds)


def kto(  # noqa: PLR0913 - each judgment has a weight
    answers: Answers,
    good: Float[Array, "*answers"],
    divergence: Float[Array, ""],
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Float[Array, "*answers"]:
    """Return KTO's loss: w_good (1 - s(beta (r - z))) or w_bad (1 - s(beta (z - r))).

    The first is for answers whose ``good`` is 1, the second for those whose ``good`` is 0.
    Ethayarajh et al. 2024, arXiv 2402.01306, equation 7; z = ``divergence`` is ``kto_divergence``.
    """
    reward = beta * (answers.log_ratio - divergence)
    desirable = desirable_weight * jax.nn.sigmoid(-reward)
    return jnp.where(good > 0, desirable, undesirable_weight * jax.nn.sigmoid(reward))


def kto_divergence(mismatched: Answers, present: Float[Array, "*answers"]) -> Float[Array, ""]:
    """Return max(0, mean r) over the ``present`` mismatched answers, without gradient.

    The estimate z_0 of the KL divergence from the reference: Ethayarajh et al. 2024,
    arXiv 2402.01306, section 4.1.
    """
    total = jnp.sum(present * mismatched.log_ratio)
    mean = total / jnp.maximum(jnp.sum(present), 1.0)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


def _log_odds(mean: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
    """Return log(P / (1 - P)) for P = exp(mean)."""
    mean = jnp.minimum(mean, _MAX_MEAN_LOGPROB)
    # 1 - P = -expm1(mean), which keeps its digits if P is close to 1.
    return mean - jnp.log(-jnp.expm1(mean))


@dataclass(frozen=True)
class PreferenceLoss:
    """An entry of the table of preference losses."""

    function: Callable[..., jax.Array]
    """``(chosen, rejected) -> losses``, or ``kto``'s; each keyword-only parameter is a field of
    ``PreferenceConfig``."""
    source: str
    """The paper and the number of the equation."""
    reference_free: bool = False
    """True if the loss reads no reference log-probabilities."""
    takes_pairs: bool = True
    """False if the loss takes single answers, judged good or bad."""

    @property
    def options(self) -> tuple[str, ...]:
        """The fields of ``PreferenceConfig`` that the loss reads."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(one.name for one in parameters if one.kind is one.KEYWORD_ONLY)

    def bind(self, config: PreferenceConfig) -> Callable[..., jax.Array]:
        """Return the function with its options set to the values in ``config``."""
        return partial(self.function, **{name: getattr(config, name) for name in self.options})


LOSSES: dict[str, PreferenceLoss] = {
    "sigmoid": PreferenceLoss(
        sigmoid, "DPO, arXiv 2305.18290, eq. 7; cDPO, ericmitchell.ai/cdpo.pdf, eq. 3"
    ),
    "robust": PreferenceLoss(robust, "rDPO, arXiv 2403.00409, section 3"),
    "hinge": PreferenceLoss(
        hinge, "SLiC, arXiv 2305.10425, eq. 1; RSO, arXiv 2309.06657, section 2"
    ),
    "ipo": PreferenceLoss(ipo, "IPO, arXiv 2310.12036, eq. 17"),
    "sigmoid_norm": PreferenceLoss(sigmoid_norm, "TRL, DPOConfig.loss_type sigmoid_norm"),
    "simpo": PreferenceLoss(simpo, "SimPO, arXiv 2405.14734, eq. 6", reference_free=True),
    "orpo": PreferenceLoss(orpo, "ORPO, arXiv 2403.07691, eqs. 6 and 7", reference_free=True),
    "kto": PreferenceLoss(kto, "KTO, arXiv 2402.01306, eq. 7", takes_pairs=False),
}
"""The preference losses by the name in ``PreferenceConfig.loss``."""

REFERENCE_FREE = tuple(name for name, loss in LOSSES.items() if loss.reference_free)
"""Names of the losses that read no reference log-probabilities."""
