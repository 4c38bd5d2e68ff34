"""The runs that would narrow the recommendation most."""

import numpy as np

from llama_cpt.mixture_law.law import NextRun
from llama_cpt.mixture_law.normalization import at_reference
from llama_cpt.mixture_law.optimum import Domain
from llama_cpt.mixture_law.runs_table import GROUPS, RunsTable
from llama_cpt.mixture_law.surface import Surface

SHARE_STEP = 0.05
INSIDE = 0.9
"""Where this share of the draws has its optimum within the grid, no run outside is proposed: there
the forms are least to be trusted."""


def choose_next_runs(
    surface: Surface, domain: Domain, points: RunsTable, optima: np.ndarray, count: int
) -> tuple[NextRun, ...]:
    """Greedily, settings at the home size that are not measured yet.

    ``optima`` (draws, 2) are in units of what counts as a difference. With o the optimum and p
    the two log losses of a setting, over the bootstrap draws, and v a run's noise, a run there
    leaves of the optimum's variance

        var(o) - cov(o, p) (cov(p) + v)^-1 cov(p, o)

    on average over outcomes, were the draws Gaussian; the setting with the smallest trace is taken,
    o and all p are conditioned on it, and the next one is sought.
    """
    frame = surface.normalization
    almr, rate = _candidates(domain, points, surface)
    learning_rate = np.exp(rate + frame.middle_rate)
    at = frame.settings(almr, learning_rate, frame.reference_parameters, frame.reference_tokens)
    losses = np.concatenate([surface.groups[group].spread(at) for group in GROUPS], axis=1)
    covariance = np.cov(np.concatenate([optima, losses], axis=1), rowvar=False)
    noise = np.diag([surface.groups[group].noise ** 2 for group in GROUPS])
    # Rows of each candidate's two losses; the first two rows are the optimum's.
    rows = 2 + np.arange(len(almr))[:, None] + len(almr) * np.arange(len(GROUPS))
    whole, free, chosen = float(np.trace(covariance[:2, :2])), np.ones(len(almr), bool), []
    for _ in range(min(count, len(almr))):
        measured = covariance[rows[:, :, None], rows[:, None, :]] + noise
        shared = covariance[rows, :2]
        shrink = np.einsum("cgo,cgo->c", shared, np.linalg.solve(measured, shared))
        best = int(np.argmax(np.where(free, shrink, -1.0)))
        across = covariance[:, rows[best]]
        covariance = covariance - across @ np.linalg.solve(measured[best], across.T)
        free[best] = False
        left = float(np.trace(covariance[:2, :2])) / whole
        chosen.append(NextRun(float(almr[best]), float(learning_rate[best]), left))
    return tuple(chosen)


def searched(domain: Domain, optima: np.ndarray) -> Domain:
    """The grid where hardly any optimum (draws, 2: ALMR, log rate) is outside, else all of it."""
    ends = np.array([domain.measured_almr, domain.measured_rate])
    inside = np.all((optima > ends[:, 0]) & (optima < ends[:, 1]), axis=1)
    return domain.within_the_grid() if inside.mean() >= INSIDE else domain


def _candidates(
    domain: Domain, points: RunsTable, surface: Surface
) -> tuple[np.ndarray, np.ndarray]:
    """Ratios in steps of 0.05 and rates in halves of the grid's steps, unless measured."""
    low, high = domain.almr[0], domain.almr[-1]
    ratios = SHARE_STEP * np.arange(np.ceil(low / SHARE_STEP - 1e-9), high / SHARE_STEP + 1e-9)
    home = surface.normalization.of(points.where(at_reference(points)))
    measured = np.unique(np.round(home.rate, 9))
    middles = (measured[1:] + measured[:-1]) / 2
    rates = np.unique(np.round([*measured, *middles, domain.rate[0], domain.rate[-1]], 9))
    almr, rate = (values.ravel() for values in np.meshgrid(np.round(ratios, 9), rates))
    off_ratio = np.abs(almr[:, None] - home.almr) > 1e-6
    off_rate = np.abs(rate[:, None] - home.rate) > 1e-6
    fresh = np.all(off_ratio | off_rate, axis=1)
    return almr[fresh], rate[fresh]
