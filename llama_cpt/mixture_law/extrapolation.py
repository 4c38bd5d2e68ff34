"""Extrapolation of the optimum from the fitted model sizes and token budgets to a target.

The optimum follows power laws of the model size and of the token budget. The power laws of the size
are fitted if the data contains at least two sizes, and the power laws of the budget are fitted if
the data contains at least two budgets. Exponents that are not fitted come from a prior.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from llama_cpt.mixture_law.intervals import make_interval
from llama_cpt.mixture_law.law import Exponent, Extrapolation, SizeOptimum
from llama_cpt.mixture_law.optimum import OptimumAt
from llama_cpt.mixture_law.surface import widening

STEP_LAW = (
    "Step Law, arXiv 2503.04715, for training from scratch; the 90 % interval is from 0 to twice "
    "its exponent"
)
"""Description of the prior for the exponents of the learning rate."""
UNCHANGED = "the ratio does not change, as arXiv 2409.06624 assumes from 8B to 70B parameters"
"""Description of the prior for the exponents of the odds ALMR / (1 - ALMR)."""


@dataclass(frozen=True)
class Powers:
    """Exponents of the optimum as a power law of the model size or of the tokens.

    Entry 0 of each array belongs to the selected fit, and the other entries to bootstrap draws.
    """

    rate: np.ndarray
    """Exponents of the optimal learning rate."""
    odds: np.ndarray
    """Exponents of the odds ALMR / (1 - ALMR) of the optimal ratio."""
    fitted: bool
    """Whether the exponents are fitted; otherwise they come from a prior."""


def make_powers(optima: list[OptimumAt], logs: np.ndarray, prior: np.ndarray) -> Powers:
    """Return the least-squares slopes of the log optima as functions of ``logs``, or the prior.

    ``logs`` contains the log model size or the log tokens of each optimum. ``prior`` contains
    draws of the exponent a or b of ``SurfaceModel``. If there is only one optimum, the exponents of
    the learning rate are ``-prior``, and the exponents of the odds are 0.
    """
    if len(optima) < 2:
        # The prior assumes that the ratio does not change, as arXiv 2409.06624 does from 8B to 70B.
        return Powers(-prior, np.zeros(len(prior)), fitted=False)
    # The least-squares slope is a linear combination of the values with these weights.
    weights = (logs - logs.mean()) / np.sum((logs - logs.mean()) ** 2)
    rates = np.stack([optimum_at.optima.rate for optimum_at in optima], axis=-1)
    odds = np.stack([optimum_at.log_odds for optimum_at in optima], axis=-1)
    return Powers(rates @ weights, odds @ weights, fitted=True)


def widen(optimum_at: OptimumAt, size: float, budget: float) -> OptimumAt:
    """Return the optima with wider bootstrap intervals, for a target beyond the fitted range.

    ``size`` is the target's model size divided by the largest fitted size, and ``budget`` is the
    target's token budget divided by the largest fitted budget. The distance of every draw from the
    selected fit, in log learning rate and in log odds of the ratio, is multiplied by
    ``widening(log(size)) * widening(log(budget))``.
    """
    factor = float(widening(np.log(size)) * widening(np.log(budget)))
    rate, odds = optimum_at.optima.rate, optimum_at.log_odds
    # Entry 0, the optimum of the selected fit, does not change.
    rate = rate[0] + factor * (rate - rate[0])
    odds = odds[0] + factor * (odds - odds[0])
    optima = replace(optimum_at.optima, rate=rate, almr=expit(odds))
    return replace(optimum_at, optima=optima)


def extrapolate(
    optima: list[OptimumAt], sizes: Powers, tokens: Powers, target: OptimumAt | None, factor: float
) -> Extrapolation:
    """Return the exponents and the optima by model size.

    ``target`` is the optimum at the target, or None. It is appended to the fitted optima.
    ``factor`` is the target size divided by the largest fitted size.
    """
    fitted = [_optimum(optimum_at, is_target=False) for optimum_at in optima]
    exponents = (
        _exponent("learning rate", "parameters", sizes.rate, None if sizes.fitted else STEP_LAW),
        _exponent("almr odds", "parameters", sizes.odds, None if sizes.fitted else UNCHANGED),
        _exponent("learning rate", "tokens", tokens.rate, None if tokens.fitted else STEP_LAW),
        _exponent("almr odds", "tokens", tokens.odds, None if tokens.fitted else UNCHANGED),
    )
    extrapolated = [_optimum(target, is_target=True)] if target else []
    return Extrapolation(exponents, (*fitted, *extrapolated), factor)


def _optimum(optimum_at: OptimumAt, *, is_target: bool) -> SizeOptimum:
    """Return the ratio and the learning rate of an optimum, with their intervals."""
    return SizeOptimum(
        parameters=optimum_at.parameters,
        tokens=optimum_at.tokens,
        almr=optimum_at.almr,
        learning_rate=optimum_at.learning_rate,
        target=is_target,
    )


def _exponent(of: str, over: str, draws: np.ndarray, prior: str | None) -> Exponent:
    """Return an exponent with its interval; ``draws`` is ``rate`` or ``odds`` of ``Powers``."""
    return Exponent(of=of, over=over, power=make_interval(float(draws[0]), draws[1:]), prior=prior)
