"""The optimum of one size and budget carried to another by powers: fitted, or a stated prior."""

from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.bands import Band, band
from llama_cpt.mixture_law.law import Carry, Exponent, SizeOptimum
from llama_cpt.mixture_law.places import Place
from llama_cpt.mixture_law.surface_model import PRIOR, PRIOR_WIDTH

FAR = 10.0
"""Times the largest fitted size, beyond which a carry is an extrapolation."""
STEP_LAW = "Step Law, arXiv 2503.04715, of runs from scratch; 90 % from no change to twice it"
UNCHANGED = "carried unchanged, as arXiv 2409.06624 does from 8B to 70B"


@dataclass(frozen=True)
class Powers:
    """By draw, entry 0 the chosen fit's: of log rate and of the ratio's log odds."""

    rate: np.ndarray
    odds: np.ndarray
    fitted: bool


def by_size(places: list[Place], rng: np.random.Generator) -> Powers:
    """Over at least two sizes, the slopes of the optima; else the prior."""
    count = len(places[0].optima.almr)
    if len(places) < 2:
        return _prior(1, count, rng)
    return _slopes(places, np.log([place.parameters for place in places]))


def by_tokens(places: list[Place], rng: np.random.Generator) -> Powers:
    """Over at least two budgets of the home size."""
    count = len(places[0].optima.almr)
    if len(places) < 2:
        return _prior(3, count, rng)
    return _slopes(places, np.log([place.tokens for place in places]))


def _prior(which: int, count: int, rng: np.random.Generator) -> Powers:
    rate = -PRIOR[which] + PRIOR_WIDTH[which] * rng.standard_normal(count)
    rate[0] = -PRIOR[which]
    return Powers(rate, np.zeros(count), fitted=False)


def _slopes(places: list[Place], logs: np.ndarray) -> Powers:
    off = (logs - logs.mean()) / np.sum((logs - logs.mean()) ** 2)
    rates = np.stack([place.optima.rate for place in places], axis=-1)
    odds = np.stack([_odds(place.optima.almr) for place in places], axis=-1)
    return Powers(rates @ off, odds @ off, fitted=True)


def _odds(almr: np.ndarray) -> np.ndarray:
    return np.log(almr / (1 - almr))


def carried(
    start: Place, sizes: Powers, tokens: Powers, parameters: float, budget: float, largest: float
) -> SizeOptimum:
    """The optimum of ``start`` at another size and budget, its interval widened when far."""
    grown, longer = np.log(parameters / start.parameters), np.log(budget / start.tokens)
    rate = start.optima.rate + sizes.rate * grown + tokens.rate * longer + start.middle_rate
    odds = _odds(start.optima.almr) + sizes.odds * grown + tokens.odds * longer
    widened = widening(parameters / largest)
    rate = rate[0] + widened * (rate - rate[0])
    odds = odds[0] + widened * (odds - odds[0])
    almr = 1 / (1 + np.exp(-odds))
    return SizeOptimum(
        parameters=parameters,
        tokens=budget,
        almr=band(float(almr[0]), almr[1:]),
        learning_rate=band(float(np.exp(rate[0])), np.exp(rate[1:])),
        target=True,
    )


def widening(factor: float) -> float:
    """Of intervals, for a target so many times the largest fitted size: log10 of it beyond 10."""
    return float(max(1.0, np.log(factor) / np.log(FAR)))


def make_carry(
    places: list[Place],
    sizes: Powers,
    tokens: Powers,
    target: SizeOptimum | None,
    largest: float,
) -> Carry:
    """All of it in words and numbers."""
    optima = tuple(
        SizeOptimum(place.parameters, place.tokens, place.almr, place.learning_rate, target=False)
        for place in places
    )
    exponents = (
        _exponent("learning rate", "parameters", sizes.rate, None if sizes.fitted else STEP_LAW),
        _exponent("almr odds", "parameters", sizes.odds, None if sizes.fitted else UNCHANGED),
        _exponent("learning rate", "tokens", tokens.rate, None if tokens.fitted else STEP_LAW),
        _exponent("almr odds", "tokens", tokens.odds, None if tokens.fitted else UNCHANGED),
    )
    factor = (target.parameters if target else largest) / largest
    return Carry(exponents, (*optima, *((target,) if target else ())), factor)


def _exponent(of: str, over: str, draws: np.ndarray, prior: str | None) -> Exponent:
    power: Band = band(float(draws[0]), draws[1:])
    return Exponent(of=of, over=over, power=power, prior=prior)
