"""The preference losses, in nats per pair or per rated answer.

``LOSSES`` lists all losses. To add a loss, write a function whose keyword-only parameters are
fields of ``PreferenceConfig``, and add it to ``LOSSES`` with the source of its equation.

The docstrings use these symbols. For an answer, p is its log-probability under the policy, q is its
log-probability under the reference model, n is its number of counted tokens, and r = p - q is its
log-ratio. The subscripts w and l denote the chosen (won) and the rejected (lost) answer of a pair.
The function s is the logistic function.
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

# An answer with probability 1 has infinite odds. The mean log-probability is therefore clipped to a
# value that is distinct from 0 in float32.
_MAX_MEAN_LOGPROB = -1e-6


class Answers(NamedTuple):
    """Answers, such as the chosen answer of each pair, as three arrays of the same shape."""

    logprobs: Float[Array, "*pairs"]
    """Summed log-probability p of the answer under the policy, in nats."""
    reference: Float[Array, "*pairs"]
    """Summed log-probability q of the answer under the reference model, in nats."""
    tokens: Float[Array, "*pairs"]
    """Number n of counted tokens. It is 0 for padding; p and r are then divided by 1, not by n."""

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

    Source: Rafailov et al. 2023, arXiv 2305.18290, equation 7. The symbol e is ``label_smoothing``;
    e > 0 gives Mitchell's conservative DPO (2023, ericmitchell.ai/cdpo.pdf, equation 3).
    """
    margin = beta * (chosen.log_ratio - rejected.log_ratio)
    right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def robust(chosen: Answers, rejected: Answers, *, beta: float, label_smoothing: float) -> PairLoss:
    """Return rDPO's loss, [-(1 - e) log s(x) + e log s(-x)] / (1 - 2 e), x = beta (r_w - r_l).

    The loss is unbiased if a fraction e = ``label_smoothing`` of the preferences is flipped.
    Source: Chowdhury, Kini, Natarajan 2024, arXiv 2403.00409, section 3.
    """
    margin = beta * (chosen.log_ratio - rejected.log_ratio)
    right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return (label_smoothing * wrong - (1 - label_smoothing) * right) / (1 - 2 * label_smoothing)


def hinge(chosen: Answers, rejected: Answers, *, beta: float) -> PairLoss:
    """Return the hinge loss, max(0, 1 - beta (r_w - r_l)).

    Source: the rank loss of SLiC (Zhao et al. 2023, arXiv 2305.10425, equation 1), applied to DPO's
    rewards as in RSO (Liu et al. 2023, arXiv 2309.06657, section 2).
    """
    return jax.nn.relu(1 - beta * (chosen.log_ratio - rejected.log_ratio))


def ipo(chosen: Answers, rejected: Answers, *, beta: float) -> PairLoss:
    """Return IPO's loss, (r_w / n_w - r_l / n_l - 1 / (2 beta))^2.

    Source: Azar et al. 2023, arXiv 2310.12036, equation 17, with means over tokens. The equation in
    the paper uses sums. According to a comment in TRL's code, the authors used means.
    """
    margin = chosen.mean_log_ratio - rejected.mean_log_ratio
    return jnp.square(margin - 1 / (2 * beta))


def sigmoid_norm(chosen: Answers, rejected: Answers, *, beta: float) -> PairLoss:
    """Return DPO's loss with means over tokens, -log s(beta (r_w / n_w - r_l / n_l)).

    Source: ``loss_type="sigmoid_norm"`` of TRL's ``DPOConfig``.
    """
    return -jax.nn.log_sigmoid(beta * (chosen.mean_log_ratio - rejected.mean_log_ratio))


def simpo(chosen: Answers, rejected: Answers, *, beta: float, gamma: float) -> PairLoss:
    """Return SimPO's loss, -log s(beta (p_w / n_w - p_l / n_l) - gamma).

    The loss does not use a reference model. Source: Meng, Xia, Chen 2024, arXiv 2405.14734,
    equation 6.
    """
    return -jax.nn.log_sigmoid(beta * (chosen.mean - rejected.mean) - gamma)


def orpo(chosen: Answers, rejected: Answers, *, beta: float) -> PairLoss:
    """Return ORPO's loss, -p_w / n_w - beta log s(log odds_w - log odds_l).

    Here odds = P / (1 - P) and P = exp(p / n). The loss does not use a reference model. Source:
    Hong, Lee, Thorne 2024, arXiv 2403.07691, equations 6 and 7, in which ``beta`` is called lambda.
    The first term is the mean NLL of the answer tokens. In TRL, it also includes the prompt tokens.
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
    """Return KTO's loss per answer.

    The loss is ``desirable_weight`` (1 - s(beta (r - z))) if ``good`` is 1, and
    ``undesirable_weight`` (1 - s(beta (z - r))) if ``good`` is 0, where z is ``divergence``, the
    result of ``kto_divergence``. Source: Ethayarajh et al. 2024, arXiv 2402.01306, equation 7.
    """
    reward = beta * (answers.log_ratio - divergence)
    desirable = desirable_weight * jax.nn.sigmoid(-reward)
    return jnp.where(good > 0, desirable, undesirable_weight * jax.nn.sigmoid(reward))


def kto_divergence(mismatched: Answers, present: Float[Array, "*answers"]) -> Float[Array, ""]:
    """Return max(0, m), where m is the mean of r over the mismatched answers.

    Answers whose ``present`` is 0 are ignored. A mismatched answer follows the prompt of a
    different answer. The result is the estimate z_0 of the KL divergence from the reference model
    (Ethayarajh et al. 2024, arXiv 2402.01306, section 4.1), in nats. It has no gradient.
    """
    total = jnp.sum(present * mismatched.log_ratio)
    mean = total / jnp.maximum(jnp.sum(present), 1.0)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


def _log_odds(mean: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
    """Return log(P / (1 - P)) for P = exp(mean)."""
    mean = jnp.minimum(mean, _MAX_MEAN_LOGPROB)
    # 1 - P equals -expm1(mean), which is accurate if P is close to 1.
    return mean - jnp.log(-jnp.expm1(mean))


@dataclass(frozen=True)
class PreferenceLoss:
    """A preference loss and its properties, as an entry of ``LOSSES``."""

    function: Callable[..., jax.Array]
    """Function ``(chosen, rejected) -> losses``, or a function with the signature of ``kto``.

    Each keyword-only parameter is a field of ``PreferenceConfig``.
    """
    source: str
    """Paper and equation of the loss."""
    reference_free: bool = False
    """True if the loss does not use reference log-probabilities."""
    takes_pairs: bool = True
    """False if the loss takes single answers that are rated good or bad."""

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the fields of ``PreferenceConfig`` that the loss uses."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(one.name for one in parameters if one.kind is one.KEYWORD_ONLY)

    def bind(self, config: PreferenceConfig) -> Callable[..., jax.Array]:
        """Return ``function`` with its keyword-only parameters set from ``config``."""
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
"""The preference losses by their name in ``PreferenceConfig.loss``."""

REFERENCE_FREE = tuple(name for name, loss in LOSSES.items() if loss.reference_free)
"""Names of the losses that do not use reference log-probabilities."""
