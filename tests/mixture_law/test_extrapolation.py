"""Extrapolation from fitted sizes and budgets to a target."""

import re

import numpy as np
import pytest

from llama_cpt.mixture_law.analyze import analyze
from llama_cpt.mixture_law.objective import Bound, Weights
from tests.mixture_law.worlds import (
    BASE,
    joined,
    plausible,
    plausible_losses,
    recommendation_of,
    sized,
)

OBJECTIVE = Bound(0.03)


def power(law, of, over):
    """Return the exponent of ``of`` over ``over``."""
    assert law.extrapolation
    return next(e for e in law.extrapolation.exponents if (e.of, e.over) == (of, over))


def test_fitted_powers_extrapolate_rate_and_losses():
    runs = joined(sized(1e6), sized(4e6, almr=(0.3, 0.5, 0.7), rates=(1.5e-3, 3e-3, 6e-3)))
    base = {group: loss * 32**-0.1 for group, loss in BASE.items()}
    law = analyze(runs, objective=OBJECTIVE, target_parameters=3.2e7, target_base=base)
    rate = power(law, "learning rate", "parameters")
    assert rate.prior is None and rate.power.low < -0.5 < rate.power.high
    assert rate.power.value == pytest.approx(-0.5, abs=0.15)
    found = recommendation_of(law)
    reference = recommendation_of(analyze(sized(1e6), objective=OBJECTIVE))
    assert abs(found.almr.value - reference.almr.value) < 0.07
    decades = np.log10(found.learning_rate.value / (reference.learning_rate.value * 32**-0.5))
    assert abs(decades) < 0.2 and found.parameters == 3.2e7
    true = plausible_losses(found.almr.value, found.learning_rate.value * 32**0.5)
    for group, loss in true.items():
        assert found.losses[group].value == pytest.approx(loss * 32**-0.1, rel=0.01)
    scores = {form.group: form.held_out for form in law.forms if form.chosen}
    missed = {group: score.size or 0 for group, score in scores.items() if score}
    assert len(missed) == 2 and all(0 < error < 0.05 for error in missed.values())
    for group, interval in found.losses.items():
        size_error = 1.645 * missed[group] * np.log(3.2e7 / 4e6) / np.log(4)
        assert np.log(interval.high / interval.value) >= size_error
    assert not any("a prior" in note for note in law.notes)
    assert law.extrapolation
    assert [optimum.target for optimum in law.extrapolation.optima] == [False, False, True]


def test_one_size_extrapolates_by_a_marked_prior():
    near, far = (
        analyze(plausible(), objective=OBJECTIVE, target_parameters=n) for n in (8e6, 1.2e7)
    )
    rate = power(near, "learning rate", "parameters")
    assert "2503.04715" in str(rate.prior) and rate.power.value == -0.713
    assert "2409.06624" in str(power(near, "almr odds", "parameters").prior)
    reference = recommendation_of(analyze(plausible(), objective=OBJECTIVE))
    found, wider = recommendation_of(near), recommendation_of(far)
    ratio = found.learning_rate.value / reference.learning_rate.value
    assert ratio == pytest.approx(8**-0.713, rel=1e-3)
    assert found.almr.value == pytest.approx(reference.almr.value, abs=1e-3)
    assert found.extrapolation is None
    assert "Losses at 8e+06 parameters are assumed to be proportional" in near.notes[-1]
    assert "that of the table's size is used" in near.notes[-1]
    assert re.search("12 times .* by the factor 1.08", str(wider.extrapolation))
    low, high = (np.ptp(np.log(np.array(law.learning_rate))) for law in (found, wider))
    assert high > 1.2 * low


@pytest.mark.parametrize("objective", [OBJECTIVE, Weights(1.0, 1.0)])
def test_remote_target_is_refused(objective):
    law = analyze(plausible(), objective=objective, target_parameters=1e30, target_tokens=1e40)
    assert re.search(
        "1e\\+30 parameters .* learning rate is uncertain.* wider than 2 decades", str(law.refusal)
    )
    assert law.recommendation is None


def test_tokens_beyond_ten_budgets_are_an_extrapolation():
    longer = analyze(plausible(), objective=OBJECTIVE, target_tokens=4e8)
    extrapolation = str(recommendation_of(longer).extrapolation)
    assert re.search("20 times the largest fitted budget.* by the factor 1.30", extrapolation)
    near, far = (longer.predict(0.5, 3e-3, tokens=n)["original"] for n in (2e8, 2e10))
    assert far.high / far.value > near.high / near.value


def test_target_below_fitted_sizes_is_refused():
    law = analyze(plausible(), objective=OBJECTIVE, target_parameters=1e5)
    assert "below the smallest fitted size" in str(law.refusal) and law.recommendation is None


def test_fitted_budgets_extrapolate():
    longer = sized(1e6, tokens=8e7)
    shifted = longer.learning_rate * 4**0.3
    runs = joined(sized(1e6), longer.where(shifted > 0))
    runs.learning_rate[20:] = shifted
    law = analyze(runs, objective=OBJECTIVE, target_tokens=1.6e8)
    rate = power(law, "learning rate", "tokens")
    assert rate.prior is None and rate.power.value == pytest.approx(0.3, abs=0.15)
    assert recommendation_of(law).tokens == 1.6e8
