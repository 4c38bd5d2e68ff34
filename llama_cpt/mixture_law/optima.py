"""Optima of a surface and of its draws at one size and budget."""

from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.intervals import Interval, make_interval
from llama_cpt.mixture_law.objective import Objective
from llama_cpt.mixture_law.optimum import Domain, Optima, find_optima
from llama_cpt.mixture_law.runs_table import GROUPS
from llama_cpt.mixture_law.surface import LARGEST_LOG, Surface


@dataclass(frozen=True)
class OptimumAt:
    """One size and budget with its optima: entry 0 is the chosen fit's, the others the draws'."""

    parameters: float
    tokens: float
    domain: Domain
    optima: Optima
    middle_rate: float
    moved: float
    """By how much the rates of the domain are, for the chosen fit."""

    @property
    def odds(self) -> np.ndarray:
        """Log odds of the ratios."""
        return np.log(self.optima.almr / (1 - self.optima.almr))

    @property
    def almr(self) -> Interval:
        """Of the optimum."""
        return make_interval(float(self.optima.almr[0]), self.optima.almr[1:])

    @property
    def learning_rate(self) -> Interval:
        """Of the optimum."""
        rates = np.exp(np.clip(self.optima.rate + self.middle_rate, -LARGEST_LOG, LARGEST_LOG))
        return make_interval(float(rates[0]), rates[1:])


def find_optimum_at(
    surface: Surface,
    goal: Objective,
    domain: Domain,
    parameters: float,
    tokens: float,
    shift: np.ndarray | float = 0.0,
) -> OptimumAt:
    """The optima in a domain, whose rates are moved by ``shift`` (a number, or one an entry)."""
    frame = surface.normalization
    at = domain.settings(frame, parameters, tokens)
    home = frame.base(frame.reference_parameters)
    moves = np.broadcast_to(shift, 1 + surface.draws)
    logs = {}
    for group in GROUPS:
        fits = surface.groups[group]
        both = [fits.center(at, moves[:1])[None], fits.spread(at, moves[1:])]
        logs[group] = np.concatenate(both) + np.log(home[group])
    found = find_optima(logs, domain, goal, frame.base(parameters))
    optima = Optima(found.almr, found.rate + moves, found.rate_by_ratio + moves[:, None])
    return OptimumAt(parameters, tokens, domain, optima, frame.middle_rate, float(moves[0]))
