"""Tests of the forms: derivatives, and fits to losses that a form describes exactly."""

import numpy as np
import pytest

from llama_cpt.mixture_law.fit import Problem, fit
from llama_cpt.mixture_law.forms import forms_of
from llama_cpt.mixture_law.normalization import Settings, make_normalization
from llama_cpt.mixture_law.surface import make_model
from llama_cpt.mixture_law.table import GROUPS
from tests.mixture_law.truths import truths
from tests.mixture_law.worlds import plausible

FORMS = [form for group in GROUPS for form in forms_of(group)]
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.name} {form.group}")


def grid(sizes=1) -> Settings:
    """Return the settings of a grid of 5 ratios, 4 learning rates and ``sizes`` model sizes."""
    almr, rate, size = np.meshgrid(
        [0.1, 0.3, 0.5, 0.7, 0.9], np.linspace(-1.7, 1.7, 4), np.log(4.0) * np.arange(sizes)
    )
    almr, rate, size = almr.ravel(), rate.ravel(), size.ravel()
    return Settings(almr, rate, size, -0.1 * size, 0.5 * (np.arange(len(rate)) % 2))


@each_form
def test_jacobian_matches_finite_differences(form):
    at = grid(sizes=2)
    model = make_model(form, at, 0.1)
    theta = model.starts()[-1] + 0.1 * np.cos(np.arange(len(model.names)))
    for i, column in enumerate(model.jacobian(theta, at).T):
        step = 1e-6 * np.eye(len(theta))[i]
        slope = (model.value(theta + step, at) - model.value(theta - step, at)) / 2e-6
        np.testing.assert_allclose(column, slope, rtol=1e-5, atol=1e-7, err_msg=model.names[i])


@each_form
def test_gradient_matches_finite_differences(form):
    at = grid()
    model = make_model(form, at, 0.1)
    theta = model.starts()[0] + 0.01
    problem = Problem(model, at, model.value(theta, at) + 0.02 * np.sin(np.arange(len(at.almr))))
    weight = np.ones(len(at.almr))
    slopes = problem.gradient(theta + 0.005, problem.y, weight)
    for i, slope in zip(np.flatnonzero(model.free), slopes, strict=True):
        step = 1e-6 * np.eye(len(theta))[i]
        ends = [problem.objective(theta + 0.005 + s, problem.y, weight) for s in (step, -step)]
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("name", ["quadratic", "d-cpt", "cpt-dynamics", "sailor"])
def test_fit_recovers_its_own_surface(name):
    truth = truths(plausible(noise=0.0))[name]
    at = make_normalization(truth.runs, {}).of(truth.runs)
    for model, theta in truth.fits.values():
        y = model.value(theta, at)
        found = fit(Problem(model, at, y))
        np.testing.assert_allclose(model.value(found, at), y, atol=2e-4)


@each_form
def test_singular_form_is_evaluated_at_half_the_smallest_share(form):
    at = Settings(*np.array([[0.0, 0.05, 1.0, 0.95], *np.zeros((4, 4))]))
    model = make_model(form, at, 0.1)
    value = model.value(model.starts()[-1], at)
    none, half = (0, 1) if form.group == "additional" else (2, 3)
    assert np.isfinite(value).all() and model.fits(at)[none] != form.singular
    assert (value[none] == value[half]) == form.singular or form.name == "quadratic"
