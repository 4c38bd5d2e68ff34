"""Loss surfaces with known optima: fits of every form to one table, and flattened copies."""

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
from tests.mixture_law.worlds import grid, make_runs

STUDY = Path(__file__).resolve().parents[2] / "docs" / "notes" / "study" / "small.csv"
OBJECTIVE = Bound(0.03)


def study_runs() -> RunsTable:
    """Return the runs of the smallest model in the study of docs/notes/study.md."""
    return read_results([str(STUDY)]).runs


@dataclass(frozen=True)
class Truth:
    """A true loss surface: fits of one form to both groups."""

    name: str
    runs: RunsTable
    fits: dict[str, tuple[SurfaceModel, np.ndarray]]
    flatness: float = 1.0
    """Factor on the deviations of the log losses from a constant."""

    @property
    def base(self) -> dict[str, float]:
        """Losses of the base model by group."""
        normalization = make_normalization(self.runs, {})
        return normalization.base(normalization.reference_parameters)

    def logs(self, at: Settings) -> dict[str, np.ndarray]:
        """Return the log losses by group.

        The original loss is flattened around its bound, so that the optimum does not move.
        """
        middles = {
            "additional": np.log(self.runs.additional).mean(),
            "original": np.log((1 + OBJECTIVE.forgetting) * self.base["original"]),
        }
        found = {}
        for group, (model, theta) in self.fits.items():
            off = model.value(theta, at) + np.log(self.base[group]) - middles[group]
            found[group] = middles[group] + self.flatness * off
        return found

    def optimum(self) -> tuple[float, float]:
        """Return ALMR and log10 of the learning rate at the optimum."""
        normalization = make_normalization(self.runs, {})
        domain = make_domain(self.runs, normalization)
        at = domain.settings(
            normalization, normalization.reference_parameters, normalization.reference_tokens
        )
        logs = {group: values[None] for group, values in self.logs(at).items()}
        best = find_optima(logs, domain, OBJECTIVE, self.base)
        return float(best.almr[0]), float((best.rate[0] + normalization.middle_rate) / np.log(10))

    def draw(self, number: int, noise: float = 0.002) -> RunsTable:
        """Return runs on the grid of the table; ``number`` is the seed of their noise."""
        rng = np.random.default_rng(number)
        almr, rates = grid(_frequent(self.runs.almr, 4), _frequent(self.runs.learning_rate, 5))
        normalization = make_normalization(self.runs, {})
        at = normalization.settings(
            almr, rates, normalization.reference_parameters, normalization.reference_tokens
        )
        noisy = {
            group: np.exp(values + noise * rng.standard_normal(len(almr)))
            for group, values in self.logs(at).items()
        }
        bases = {f"base_{g}": np.full(len(almr), value) for g, value in self.base.items()}
        return make_runs(almr, rates, noisy["additional"], noisy["original"], **bases)


def _frequent(values: np.ndarray, times: int) -> np.ndarray:
    """Return the values that occur at least ``times`` times, which are those of the grid."""
    found, counts = np.unique(values, return_counts=True)
    return found[counts >= times]


def truths(runs: RunsTable) -> dict[str, Truth]:
    """Return the surfaces of the four forms and two flattened copies of the first, by name."""
    normalization = make_normalization(runs, {})
    at = normalization.of(runs)
    made = {}
    for forms in zip(*map(forms_of, GROUPS), strict=True):
        fits = {}
        for form in forms:
            model = make_model(form, at, normalization.smallest_share[form.group])
            kept = model.fits(at)
            y = np.log(
                getattr(runs, form.group)
                / normalization.base(normalization.reference_parameters)[form.group]
            )
            fits[form.group] = (model, fit(Problem(model, at.where(kept), y[kept])))
        made[forms[0].name] = Truth(forms[0].name, runs, fits)
    for flatness in (0.5, 0.25):
        name = f"quadratic, {flatness:g} as steep"
        made[name] = Truth(name, runs, made["quadratic"].fits, flatness)
    return made
