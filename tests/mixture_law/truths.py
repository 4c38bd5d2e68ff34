"""Surfaces whose optimum is known: every form fitted to one table, and flatter copies."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llama_cpt.mixture_law.fit import Problem, fit
from llama_cpt.mixture_law.forms import forms_of
from llama_cpt.mixture_law.normalization import Settings, make_normalization
from llama_cpt.mixture_law.objective import Bound
from llama_cpt.mixture_law.optimum import find_optima, make_domain
from llama_cpt.mixture_law.runs_table import RunsTable, read_results
from llama_cpt.mixture_law.surface import SurfaceModel, make_model
from llama_cpt.mixture_law.table import GROUPS
from tests.mixture_law.worlds import grid, points_of

STUDY = Path(__file__).resolve().parents[2] / "docs" / "study" / "small.csv"
GOAL = Bound(0.03)


def study_points() -> RunsTable:
    """The study's smallest size."""
    return read_results([str(STUDY)]).runs


@dataclass(frozen=True)
class Truth:
    """Fits of one form, and how much of their differences is left."""

    name: str
    points: RunsTable
    fits: dict[str, tuple[SurfaceModel, np.ndarray]]
    flatness: float = 1.0

    @property
    def base(self) -> dict[str, float]:
        """Of the table."""
        frame = make_normalization(self.points, {})
        return frame.base(frame.reference_parameters)

    def logs(self, at: Settings) -> dict[str, np.ndarray]:
        """Log losses; flatter around the bound of the original one, so the optimum stays."""
        middles = {
            "additional": np.log(self.points.additional).mean(),
            "original": np.log((1 + GOAL.forgetting) * self.base["original"]),
        }
        found = {}
        for group, (model, theta) in self.fits.items():
            off = model.value(theta, at) + np.log(self.base[group]) - middles[group]
            found[group] = middles[group] + self.flatness * off
        return found

    def optimum(self) -> tuple[float, float]:
        """ALMR and log10 of the learning rate."""
        frame = make_normalization(self.points, {})
        domain = make_domain(self.points, frame)
        cells = domain.settings(frame, frame.reference_parameters, frame.reference_tokens)
        logs = {group: values[None] for group, values in self.logs(cells).items()}
        best = find_optima(logs, domain, GOAL, self.base)
        return float(best.almr[0]), float((best.rate[0] + frame.middle_rate) / np.log(10))

    def draw(self, number: int, noise: float = 0.002) -> RunsTable:
        """The table of runs, on a grid of 5 ratios and 4 rates, with noise of its own."""
        rng = np.random.default_rng(number)
        almr, rates = grid(_often(self.points.almr, 4), _often(self.points.learning_rate, 5))
        frame = make_normalization(self.points, {})
        at = frame.settings(almr, rates, frame.reference_parameters, frame.reference_tokens)
        noisy = {
            group: np.exp(values + noise * rng.standard_normal(len(almr)))
            for group, values in self.logs(at).items()
        }
        bases = {f"base_{g}": np.full(len(almr), value) for g, value in self.base.items()}
        return points_of(almr, rates, noisy["additional"], noisy["original"], **bases)


def _often(values: np.ndarray, times: int) -> np.ndarray:
    """Values of the grid: runs beside it are few."""
    found, counts = np.unique(values, return_counts=True)
    return found[counts >= times]


def truths(points: RunsTable) -> dict[str, Truth]:
    """Four forms, and two flatter copies of the first."""
    frame = make_normalization(points, {})
    at = frame.of(points)
    made = {}
    for forms in zip(*map(forms_of, GROUPS), strict=True):
        fits = {}
        for form in forms:
            model = make_model(form, at, frame.smallest_share[form.group])
            kept = model.fits(at)
            y = np.log(
                getattr(points, form.group) / frame.base(frame.reference_parameters)[form.group]
            )
            fits[form.group] = (model, fit(Problem(model, at.where(kept), y[kept])))
        made[forms[0].name] = Truth(forms[0].name, points, fits)
    for flatness in (0.5, 0.25):
        name = f"quadratic, {flatness:g} as steep"
        made[name] = Truth(name, points, made["quadratic"].fits, flatness)
    return made
