"""Extrapolation of the optimum from the fitted sizes and budgets to a target.

The optimum follows a power law of size and tokens, fitted if the data has two of them, otherwise a
prior.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from llama_cpt.mixture_law.intervals import make_interval
from llama_cpt.mixture_law.law import Exponent, Extrapolation, SizeOptimum
from llama_cpt.mixture_law.optimum import OptimumAt
from llama_cpt.mixture_law.surface import widening

STEP_LAW = (
    "Step Law, arXiv 2503.04715, for runs from scratch; 90 % interval from no change to twice "
    "the change"
)
UNCHANGED = "unchanged, as arXiv 2409.06624 assumes from 8B to 70B"


@dataclass(frozen=True)
class Powers:
    """Powers of the size or of the tokens: entry 0 is the selected fit's, the others the draws'."""

    rate: np.ndarray
    """Powers of the learning rate."""
    odds: np.ndarray
    """Powers of the ratio's odds, ALMR / (1 - ALMR)."""
    fitted: bool


def make_powers(optima: list[OptimumAt], logs: np.ndarray, prior: np.ndarray) -> Powers:
    """Return the slopes of the optima over ``logs`` of sizes or tokens; the prior for one optimum.

    ``prior`` is the shift of log rates that keeps a surface in place, the negative of the power of
    the best rate.
    """
    if len(optima) < 2:
        # No prior moves the ratio: arXiv 2409.06624 keeps it from 8B to 70B.
        return Powers(-prior, np.zeros(len(prior)), fitted=False)
    # Weights of the least-squares slope.
    weights = (logs - logs.mean()) / np.sum((logs - logs.mean()) ** 2)
    rates = np.stack([optimum_at.optima.rate for optimum_at in optima], axis=-1)
    odds = np.stack([optimum_at.log_odds for optimum_at in optima], axis=-1)
    return Powers(rates @ weights, odds @ weights, fitted=True)


def widen(optimum_at: OptimumAt, size: float, budget: float) -> OptimumAt:
    """Return the optima with their draws moved away from the selected fit's optimum.

    ``size`` and ``budget`` are the target's over the largest fitted ones. Beyond 10, each
    contributes its log10 as a factor. Rates and the ratio's odds are moved in logarithms.
    """
    factor = float(widening(np.log(size)) * widening(np.log(budget)))
    rate, odds = optimum_at.optima.rate, optimum_at.log_odds
    # The selected fit's optimum, entry 0, stays.
    rate = rate[0] + factor * (rate - rate[0])
    odds = odds[0] + factor * (odds - odds[0])
    optima = replace(optimum_at.optima, rate=rate, almr=expit(odds))
    return replace(optimum_at, optima=optima)


def extrapolate(
    optima: list[OptimumAt], sizes: Powers, tokens: Powers, target: OptimumAt | None, factor: float
) -> Extrapolation:
    """Return the exponents, each prior with its source, and the optima by size."""
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
    return SizeOptimum(
        parameters=optimum_at.parameters,
        tokens=optimum_at.tokens,
        almr=optimum_at.almr,
        learning_rate=optimum_at.learning_rate,
        target=is_target,
    )


def _exponent(of: str, over: str, draws: np.ndarray, prior: str | None) -> Exponent:
    return Exponent(of=of, over=over, power=make_interval(float(draws[0]), draws[1:]), prior=prior)
