"""The optimum of the fitted sizes and budgets carried to a target: by fitted powers, or a prior."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from llama_cpt.mixture_law.intervals import make_interval
from llama_cpt.mixture_law.law import Exponent, Extrapolation, SizeOptimum
from llama_cpt.mixture_law.optimum import OptimumAt
from llama_cpt.mixture_law.surface import widening

STEP_LAW = "Step Law, arXiv 2503.04715, of runs from scratch; 90 % from no change to twice it"
UNCHANGED = "carried unchanged, as arXiv 2409.06624 does from 8B to 70B"


@dataclass(frozen=True)
class Powers:
    """Of size or tokens, by draw, entry 0 the chosen fit's."""

    rate: np.ndarray
    odds: np.ndarray
    """Of the ratio."""
    fitted: bool


def make_powers(places: list[OptimumAt], logs: np.ndarray, prior: np.ndarray) -> Powers:
    """Slopes of the optima over ``logs`` of sizes or tokens; with one place only, the prior.

    ``prior`` is of the shift that keeps a surface where it is, the opposite of the best rate's.
    """
    if len(places) < 2:
        return Powers(-prior, np.zeros(len(prior)), fitted=False)
    off = (logs - logs.mean()) / np.sum((logs - logs.mean()) ** 2)
    rates = np.stack([place.optima.rate for place in places], axis=-1)
    odds = np.stack([place.odds for place in places], axis=-1)
    return Powers(rates @ off, odds @ off, fitted=True)


def widen(place: OptimumAt, size: float, budget: float) -> OptimumAt:
    """The draws further from the chosen fit's optimum: log10 of a factor where it is beyond 10.

    The factors are of the target over the largest fitted size and budget; both beyond 10, they
    multiply. Rates and the ratio's odds are moved in logs.
    """
    by = float(widening(np.log(size)) * widening(np.log(budget)))
    rate, odds = place.optima.rate, place.odds
    rate = rate[0] + by * (rate - rate[0])
    odds = odds[0] + by * (odds - odds[0])
    optima = replace(place.optima, rate=rate, almr=expit(odds))
    return replace(place, optima=optima)


def extrapolate(
    places: list[OptimumAt], sizes: Powers, tokens: Powers, target: OptimumAt | None, factor: float
) -> Extrapolation:
    """All of it in numbers, each prior with its source."""
    fitted = [_optimum(place, is_target=False) for place in places]
    exponents = (
        _exponent("learning rate", "parameters", sizes.rate, None if sizes.fitted else STEP_LAW),
        _exponent("almr odds", "parameters", sizes.odds, None if sizes.fitted else UNCHANGED),
        _exponent("learning rate", "tokens", tokens.rate, None if tokens.fitted else STEP_LAW),
        _exponent("almr odds", "tokens", tokens.odds, None if tokens.fitted else UNCHANGED),
    )
    aimed = [_optimum(target, is_target=True)] if target else []
    return Extrapolation(exponents, (*fitted, *aimed), factor)


def _optimum(place: OptimumAt, *, is_target: bool) -> SizeOptimum:
    return SizeOptimum(
        place.parameters, place.tokens, place.almr, place.learning_rate, target=is_target
    )


def _exponent(of: str, over: str, draws: np.ndarray, prior: str | None) -> Exponent:
    return Exponent(of=of, over=over, power=make_interval(float(draws[0]), draws[1:]), prior=prior)
