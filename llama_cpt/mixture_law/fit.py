"""Robust least-squares fits of a form to runs, and the residual bootstrap of its parameters."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from llama_cpt.mixture_law.normalization import Settings
from llama_cpt.mixture_law.surface import POWERS, PRIOR, SurfaceModel

HUBER_DELTA = 0.01
"""Threshold of the Huber loss for errors of the log loss; 0.01 is about 1 % of the loss."""
REGULARIZATION = 1e-7
"""Weight of the L2 penalty.

The penalty is small enough to affect only parameters that the data does not determine.
"""
FINISHED_STARTS = 3
"""Number of starting points that L-BFGS-B refines: the best after 12 Levenberg-Marquardt steps."""


@dataclass(frozen=True)
class Problem:
    """A regression problem: a model, the settings of the runs and their observed log losses."""

    model: SurfaceModel
    at: Settings
    y: np.ndarray
    """log(loss / loss of the base model of the reference size) of each run."""

    def objective(self, theta: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Return the weighted Huber loss plus the L2 penalty for each parameter vector.

        ``theta`` has the shape (..., parameters); ``y`` and ``weight`` broadcast to (..., runs).
        """
        error = self.model.value(theta, self.at) - y
        size = np.abs(error)
        loss = np.where(size < HUBER_DELTA, error**2 / 2, HUBER_DELTA * (size - HUBER_DELTA / 2))
        distance = np.sum(self._offset(theta) ** 2, axis=-1)
        return np.sum(weight * loss, axis=-1) + REGULARIZATION / 2 * distance

    def gradient(self, theta: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Return the gradient of the objective with respect to the fitted parameters."""
        return self.slopes(theta, y, weight)[0]

    def slopes(
        self, theta: np.ndarray, y: np.ndarray, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradient and the Gauss-Newton Hessian with respect to the fitted parameters.

        The gradient has the shape (..., fitted), the Hessian (..., fitted, fitted).
        """
        error = self.model.value(theta, self.at) - y
        jacobian = self.model.jacobian(theta, self.at)[..., self.model.free]
        # Huber loss as iteratively reweighted least squares: errors in the linear tail have the
        # weight delta / |error|.
        weight = weight * np.minimum(1.0, HUBER_DELTA / np.maximum(np.abs(error), 1e-12))
        weighted = jacobian * weight[..., None]
        width = self._width()[self.model.free]
        penalty_slope = REGULARIZATION * (self._offset(theta)[..., self.model.free]) / width
        gradient = np.einsum("...np,...n->...p", weighted, error) + penalty_slope
        # Gauss-Newton omits the second derivatives of the model, which are multiplied by the errors
        # and therefore small near the minimum.
        curvature = np.swapaxes(weighted, -1, -2) @ jacobian
        return gradient, curvature + np.diag(REGULARIZATION / width**2)

    def _offset(self, theta: np.ndarray) -> np.ndarray:
        """Return (theta - center) / (a quarter of the bounds' width), the argument of the penalty.

        The center is the middle of the bounds or, for ``POWERS``, the mean of the prior.
        """
        low, high = self.model.box
        middle = (low + high) / 2
        # Exponents that the data barely determines are pulled to their prior instead.
        middle[-len(POWERS) :] = PRIOR
        return (theta - middle) / self._width()

    def _width(self) -> np.ndarray:
        """Return a quarter of the width of each parameter's bounds."""
        low, high = self.model.box
        return (high - low) / 4


def fit(problem: Problem) -> np.ndarray:
    """Return the parameters with the smallest objective over all starting points."""
    weight = np.ones(len(problem.y))
    # The objective has local minima: try many starting points with few steps, then refine the best.
    starts = refit(problem, problem.model.starts(), problem.y, weight, steps=12)
    order = np.argsort(problem.objective(starts, problem.y, weight), kind="stable")
    ends = np.array([_finish(problem, starts[start]) for start in order[:FINISHED_STARTS]])
    # L-BFGS-B stops at a relative tolerance. Further Levenberg-Marquardt steps converge to the
    # minimum, so that bootstrap refits, which start there, differ only by their data.
    ends = refit(problem, ends, problem.y, weight, steps=20)
    return ends[np.argmin(problem.objective(ends, problem.y, weight))]


def _finish(problem: Problem, start: np.ndarray) -> np.ndarray:
    """Return the parameters after a bounded L-BFGS-B minimization from ``start``."""
    free, weight = problem.model.free, np.ones(len(problem.y))
    low, high = problem.model.box
    # Errors are about 0.001, so the unscaled gradient is below SciPy's tolerance from the start.
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
    """Return the parameters of many fits after ``steps`` Levenberg-Marquardt steps.

    ``theta`` and the result have the shape (fits, parameters). ``y`` and ``weight`` have the shape
    (fits, runs), or (runs,) if all fits have the same data.
    """
    free = problem.model.free
    low, high = problem.model.box
    damping = np.full(len(theta), 1e-3)
    value = problem.objective(theta, y, weight)
    for _ in range(steps):
        gradient, curvature = problem.slopes(theta, y, weight)
        diagonal = np.einsum("...pp->...p", curvature)
        # Marquardt scales the damping by the diagonal, which makes steps independent of the units
        # of the parameters.
        damped = curvature + (damping[:, None] * diagonal)[:, :, None] * np.eye(free.sum())
        step = np.linalg.solve(damped, gradient[..., None])[..., 0]
        # A fit takes the step only if its objective decreases, otherwise it retries with more
        # damping.
        candidate = theta.copy()
        candidate[:, free] = np.clip(theta[:, free] - step, low[free], high[free])
        candidate_value = problem.objective(candidate, y, weight)
        better = candidate_value < value
        theta = np.where(better[:, None], candidate, theta)
        value = np.where(better, candidate_value, value)
        damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-9, 1e6)
    return theta


SELECTION_INFLATION = 1.08
"""Factor by which bootstrap residuals are multiplied.

The form with the smallest errors is selected, so its residuals underestimate the noise. Without the
factor, the 90 % intervals contained the true optimum in only 78 % of the simulated tables for one
of the laws in ``tests/mixture_law/test_recovery.py``.
"""


def residual_scale(problem: Problem, theta: np.ndarray) -> float:
    """Return the residual standard error of the log loss, corrected for degrees of freedom."""
    error = problem.y - problem.model.value(theta, problem.at)
    return float(np.sqrt(np.sum(error**2) / (len(error) - problem.model.free.sum())))


def bootstrap(
    problem: Problem, theta: np.ndarray, prior_powers: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the parameters (draws, parameters) of a residual bootstrap.

    Residuals are divided by sqrt(1 - leverage), which corrects each run for degrees of freedom.
    The residual scale is estimated from few runs, so each draw samples its own scale from a scaled
    inverse chi distribution. This makes intervals as wide as those of Student's t. Entries of
    ``POWERS`` that are not fitted are taken from ``prior_powers`` (draws, powers), which contains
    draws from their prior.
    """
    draws = len(prior_powers)
    fitted = problem.model.value(theta, problem.at)
    runs, freedom = len(fitted), len(fitted) - problem.model.free.sum()
    # The limit keeps the residual of a run with a leverage near 1 from dominating all others.
    residuals = (problem.y - fitted) / np.sqrt(1 - np.minimum(_leverage(problem, theta), 0.95))
    # The residuals of a Huber fit need not have mean 0; without centering, every draw is biased.
    residuals -= residuals.mean()
    scale = SELECTION_INFLATION * np.sqrt(freedom / rng.chisquare(freedom, size=(draws, 1)))
    # Residuals are resampled, not runs, because the settings of the runs are a fixed design.
    y = fitted + scale * residuals[rng.integers(runs, size=(draws, runs))]
    thetas = refit(problem, np.tile(theta, (draws, 1)), y, np.ones(runs), steps=10)
    # Powers that are not fitted multiply coordinates that are 0 for all runs, so they have no
    # effect on the refits.
    fixed = ~problem.model.free[-len(POWERS) :]
    thetas[:, -len(POWERS) :][:, fixed] = prior_powers[:, fixed]
    return thetas


def is_identifiable(problem: Problem, theta: np.ndarray) -> bool:
    """Return whether the parameters that affect the predictions are locally identifiable.

    Parameters are identifiable if their columns of the Jacobian are linearly independent.
    """
    jacobian = _directions(problem, theta)
    # Parameters without an effect on these runs, such as those of a saturated term, are ignored.
    effective = np.linalg.norm(jacobian, axis=0) > 0
    return bool(np.linalg.matrix_rank(jacobian, tol=1e-9) == effective.sum())


def _leverage(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Return the leverage of each run: the diagonal of the hat matrix of the linearized fit."""
    # The hat matrix is U U^T for the left singular vectors U of the Jacobian.
    basis, size, _ = np.linalg.svd(_directions(problem, theta), full_matrices=False)
    return np.sum(basis[:, size > 1e-6] ** 2, axis=1)


def _directions(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Return the Jacobian (runs, fitted parameters) with columns normalized to length 1 or 0.

    A column is 0 if the parameter has no effect on the runs.
    """
    jacobian = problem.model.jacobian(theta, problem.at)[:, problem.model.free]
    length = np.linalg.norm(jacobian, axis=0)
    return jacobian * np.where(length > 1e-9, 1 / np.maximum(length, 1e-9), 0.0)
