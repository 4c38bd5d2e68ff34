"""Optima of a surface and of its draws at one size and budget."""

from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.bands import Band, band
from llama_cpt.mixture_law.goal import Goal
from llama_cpt.mixture_law.optimum import Domain, Optima, find_optima, make_domain
from llama_cpt.mixture_law.points import GROUPS, Points
from llama_cpt.mixture_law.settings import Frame
from llama_cpt.mixture_law.surface import Surface


@dataclass(frozen=True)
class Place:
    """One size and budget with its optima: entry 0 is the chosen fit's, the others the draws'."""

    parameters: float
    tokens: float
    domain: Domain
    optima: Optima
    middle_rate: float

    @property
    def almr(self) -> Band:
        """Of the optimum."""
        return band(float(self.optima.almr[0]), self.optima.almr[1:])

    @property
    def learning_rate(self) -> Band:
        """Of the optimum."""
        rates = np.exp(self.optima.rate + self.middle_rate)
        return band(float(rates[0]), rates[1:])


def find_place(
    surface: Surface, points: Points, goal: Goal, parameters: float, tokens: float
) -> Place:
    """The optima within what was measured at home and at this size."""
    frame = surface.frame
    domain = make_domain(points.where(_searched(points, frame, parameters)), frame)
    at = domain.settings(frame, parameters, tokens)
    home = frame.base(frame.home_parameters)
    logs = {}
    for group in GROUPS:
        fits = surface.groups[group]
        both = np.concatenate([fits.centre(at)[None], fits.spread(at)])
        logs[group] = both + np.log(home[group])
    optima = find_optima(logs, domain, goal, frame.base(parameters))
    return Place(parameters, tokens, domain, optima, frame.middle_rate)


def _searched(points: Points, frame: Frame, parameters: float) -> np.ndarray:
    return (points.parameters == frame.home_parameters) | (points.parameters == parameters)
