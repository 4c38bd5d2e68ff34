"""The runs that would narrow the recommendation most."""

import numpy as np

from llama_cpt.mixture_law.law import NextRun
from llama_cpt.mixture_law.optimum import Domain
from llama_cpt.mixture_law.points import GROUPS, Points
from llama_cpt.mixture_law.surface import Surface

SHARE_STEP = 0.05


def choose_next_runs(
    surface: Surface, domain: Domain, points: Points, optima: np.ndarray, count: int
) -> tuple[NextRun, ...]:
    """Greedily, settings inside the grid at the home size that are not measured yet.

    ``optima`` (draws, 2) are in units of what counts as a difference. With o the optimum and p
    the two log losses of a setting, over the bootstrap draws, and v a run's noise, a run there
    leaves of the optimum's variance

        var(o) - cov(o, p) (cov(p) + v)^-1 cov(p, o)

    on average over outcomes, were the draws Gaussian; the setting with the smallest trace is taken,
    o and all p are conditioned on it, and the next one is sought.
    """
    almr, rate = _candidates(domain, points, surface)
    at = surface.frame.settings(
        almr,
        np.exp(rate + surface.frame.middle_rate),
        surface.frame.home_parameters,
        surface.frame.home_tokens,
    )
    losses = np.stack([surface.groups[group].spread(at) for group in GROUPS], axis=-1)
    losses -= losses.mean(axis=0)
    optima = optima - optima.mean(axis=0)
    noise = np.diag([surface.groups[group].noise ** 2 for group in GROUPS])
    whole, draws = float(np.sum(optima**2)), len(optima)
    open_, chosen = np.ones(len(almr), bool), []
    for _ in range(min(count, len(almr))):
        covariance = np.einsum("bcg,bch->cgh", losses, losses) / draws + noise
        shared = np.einsum("bcg,bo->cgo", losses, optima) / draws
        shrink = np.einsum("cgo,cgo->c", shared, np.linalg.solve(covariance, shared))
        best = int(np.argmax(np.where(open_, shrink, -1.0)))
        gain = losses[:, best] @ np.linalg.inv(covariance[best])
        optima = optima - gain @ shared[best]
        others = np.einsum("bg,bch->gch", losses[:, best], losses) / draws
        losses = losses - np.einsum("bg,gch->bch", gain, others)
        open_[best] = False
        left = float(np.sum(optima**2)) / whole if whole else 1.0
        learning_rate = float(np.exp(rate[best] + surface.frame.middle_rate))
        chosen.append(NextRun(float(almr[best]), learning_rate, left))
    return tuple(chosen)


def _candidates(domain: Domain, points: Points, surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Within the grid, ratios in steps of 0.05 and rates in half steps, unless measured."""
    low, high = domain.measured_almr
    ratios = SHARE_STEP * np.arange(np.ceil(low / SHARE_STEP - 1e-9), high / SHARE_STEP + 1e-9)
    at_home = surface.frame.of(points)
    home = (at_home.size == 0) & (at_home.tokens == 0)
    measured = np.unique(np.round(at_home.rate[home], 9))
    middles = (measured[1:] + measured[:-1]) / 2
    rates = np.concatenate([measured, middles])
    almr, rate = (v.ravel() for v in np.meshgrid(np.round(ratios, 9), np.sort(rates)))
    off_ratio = np.abs(almr[:, None] - at_home.almr[home]) > 1e-6
    off_rate = np.abs(rate[:, None] - at_home.rate[home]) > 1e-6
    fresh = np.all(off_ratio | off_rate, axis=1)
    return almr[fresh], rate[fresh]
