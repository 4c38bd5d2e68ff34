"""Fits of a form to runs: the best parameters, and their distribution by a bootstrap."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from llama_cpt.mixture_law.intervals import Number
from llama_cpt.mixture_law.normalization import Settings
from llama_cpt.mixture_law.surface import POWERS, PRIOR, SurfaceModel

HUBER_DELTA = 0.01
"""Errors of the log loss beyond this, about 1 % of the loss, count linearly."""
REGULARIZATION = 1e-7
"""Weight of the squared distance from the box's middle; decides undetermined parameters only."""
FINISHED_STARTS = 3
"""Number of starts that are finished with L-BFGS-B, the best after a few Gauss-Newton steps."""


@dataclass(frozen=True)
class Problem:
    """Runs to fit: ``y`` is log(loss / loss of the base at the reference size)."""

    model: SurfaceModel
    at: Settings
    y: np.ndarray

    def objective(self, theta: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Number:
        """Return the Huber loss of weighted runs plus the regularization, per parameter vector."""
        error = self.model.value(theta, self.at) - y
        size = np.abs(error)
        loss = np.where(size < HUBER_DELTA, error**2 / 2, HUBER_DELTA * (size - HUBER_DELTA / 2))
        distance = np.sum(self._offset(theta) ** 2, axis=-1)
        return np.sum(weight * loss, axis=-1) + REGULARIZATION / 2 * distance

    def gradient(self, theta: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Return the gradient of the objective with respect to the free parameters."""
        return self.slopes(theta, y, weight)[0]

    def slopes(
        self, theta: np.ndarray, y: np.ndarray, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradient and the Gauss-Newton curvature by the free parameters."""
        error = self.model.value(theta, self.at) - y
        jacobian = self.model.jacobian(theta, self.at)[..., self.model.free]
        # Huber's loss as weighted least squares: a linear tail is a weight of delta / |error|.
        weight = weight * np.minimum(1.0, HUBER_DELTA / np.maximum(np.abs(error), 1e-12))
        weighted = jacobian * weight[..., None]
        width = self._width()[self.model.free]
        penalty_slope = REGULARIZATION * (self._offset(theta)[..., self.model.free]) / width
        gradient = np.einsum("...np,...n->...p", weighted, error) + penalty_slope
        # Gauss-Newton: the model's second derivatives are left out, as they are multiplied by
        # errors.
        curvature = np.swapaxes(weighted, -1, -2) @ jacobian
        return gradient, curvature + np.diag(REGULARIZATION / width**2)

    def _offset(self, theta: np.ndarray) -> np.ndarray:
        """Return the distance from the middle of the box in quarters of its width."""
        low, high = self.model.box
        middle = (low + high) / 2
        # Powers that the data barely determines stay at their prior, not at the box's middle.
        middle[-len(POWERS) :] = PRIOR
        return (theta - middle) / self._width()

    def _width(self) -> np.ndarray:
        low, high = self.model.box
        return (high - low) / 4


def fit(problem: Problem) -> np.ndarray:
    """Return the best parameters over all starting points."""
    weight = np.ones(len(problem.y))
    # The surfaces have local minima: many cheap starts, then an exact search from the best few.
    starts = refit(problem, problem.model.starts(), problem.y, weight, steps=12)
    order = np.argsort(problem.objective(starts, problem.y, weight), kind="stable")
    ends = np.array([_finish(problem, starts[start]) for start in order[:FINISHED_STARTS]])
    # L-BFGS-B stops at a relative tolerance; Gauss-Newton steps reach the minimum itself, from
    # which the bootstrap starts.
    ends = refit(problem, ends, problem.y, weight, steps=20)
    return ends[np.argmin(problem.objective(ends, problem.y, weight))]


def _finish(problem: Problem, start: np.ndarray) -> np.ndarray:
    """Minimize the objective with L-BFGS-B within the box."""
    free, weight = problem.model.free, np.ones(len(problem.y))
    low, high = problem.model.box
    # Errors are about 0.001: unscaled, the gradient is below SciPy's tolerance at the first step.
    scale = 1e6

    def full(values: np.ndarray) -> np.ndarray:
        theta = start.copy()
        theta[free] = values
        return theta

    def value_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
        theta = full(values)
        value = problem.objective(theta, problem.y, weight)
        return scale * float(value), scale * problem.gradient(theta, problem.y, weight)

    found = minimize(
        value_and_gradient,
        start[free],
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(low[free], high[free], strict=True)),
        options={"maxiter": 100, "maxcor": 20},
    )
    return full(found.x)


def refit(
    problem: Problem, theta: np.ndarray, y: np.ndarray, weight: np.ndarray, *, steps: int
) -> np.ndarray:
    """Take Levenberg-Marquardt steps for many parameter vectors at once, each with its own data.

    ``theta`` is (fits, parameters); ``y`` and ``weight`` are (fits, runs), or (runs,) for all fits.
    """
    free = problem.model.free
    low, high = problem.model.box
    damping = np.full(len(theta), 1e-3)
    value = problem.objective(theta, y, weight)
    for _ in range(steps):
        gradient, curvature = problem.slopes(theta, y, weight)
        diagonal = np.einsum("...pp->...p", curvature)
        # Marquardt's scaling by the diagonal makes steps independent of the units of the
        # parameters.
        damped = curvature + (damping[:, None] * diagonal)[:, :, None] * np.eye(free.sum())
        step = np.linalg.solve(damped, gradient[..., None])[..., 0]
        # Only vectors that improve move; the others retry with more damping.
        candidate = theta.copy()
        candidate[:, free] = np.clip(theta[:, free] - step, low[free], high[free])
        candidate_value = problem.objective(candidate, y, weight)
        better = candidate_value < value
        theta = np.where(better[:, None], candidate, theta)
        value = np.where(better, candidate_value, value)
        damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-9, 1e6)
    return theta


SELECTION_INFLATION = 1.08
"""Factor on residuals. A form is chosen for its small errors, so its residuals are too small:
without the factor, 90 % intervals held one truth of ``tests/mixture_law/test_recovery.py`` in
78 % of the draws."""


def residual_scale(problem: Problem, theta: np.ndarray) -> float:
    """Return the residual standard deviation of the log loss."""
    error = problem.y - problem.model.value(theta, problem.at)
    return float(np.sqrt(np.sum(error**2) / (len(error) - problem.model.free.sum())))


def bootstrap(
    problem: Problem, theta: np.ndarray, prior_powers: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return parameters (draws, parameters) of refits to resampled residuals.

    Residuals are divided by sqrt(1 - leverage), the correction for degrees of freedom per run.
    Their scale is estimated from few runs, so each draw has its own scale, from the chi-squared
    distribution that it follows (intervals are then as wide as Student's t). Powers that the data
    does not determine are taken from ``prior_powers`` (draws, powers), drawn from their prior.
    """
    draws = len(prior_powers)
    fitted = problem.model.value(theta, problem.at)
    runs, freedom = len(fitted), len(fitted) - problem.model.free.sum()
    # A leverage near 1 would blow up one run's residual.
    residuals = (problem.y - fitted) / np.sqrt(1 - np.minimum(_leverage(problem, theta), 0.95))
    # Huber's loss does not center the residuals; a resampled mean must not be biased.
    residuals -= residuals.mean()
    scale = SELECTION_INFLATION * np.sqrt(freedom / rng.chisquare(freedom, size=(draws, 1)))
    # Residuals are resampled, not runs: a run is a point of the grid, and the grid is fixed.
    y = fitted + scale * residuals[rng.integers(runs, size=(draws, runs))]
    thetas = refit(problem, np.tile(theta, (draws, 1)), y, np.ones(runs), steps=10)
    # Undetermined powers multiply coordinates that are 0 for all runs, so the refits ignore them.
    fixed = ~problem.model.free[-len(POWERS) :]
    thetas[:, -len(POWERS) :][:, fixed] = prior_powers[:, fixed]
    return thetas


def is_identifiable(problem: Problem, theta: np.ndarray) -> bool:
    """Return whether the runs determine all parameters that have an effect on them."""
    jacobian = _directions(problem, theta)
    # A parameter without effect on these runs, such as a saturated one, does not count against the
    # form.
    effective = np.linalg.norm(jacobian, axis=0) > 0
    return bool(np.linalg.matrix_rank(jacobian, tol=1e-9) == effective.sum())


def _leverage(problem: Problem, theta: np.ndarray) -> np.ndarray:
    # The diagonal of the hat matrix, from the left singular vectors of the Jacobian.
    basis, size, _ = np.linalg.svd(_directions(problem, theta), full_matrices=False)
    return np.sum(basis[:, size > 1e-6] ** 2, axis=1)


def _directions(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Return derivatives by the free parameters, normalized to length 1, or 0 without effect."""
    jacobian = problem.model.jacobian(theta, problem.at)[:, problem.model.free]
    length = np.linalg.norm(jacobian, axis=0)
    return jacobian * np.where(length > 1e-9, 1 / np.maximum(length, 1e-9), 0.0)
