"""Laws of synthetic runs: recommendations, refusals and notes."""

from dataclasses import replace
import re

import numpy as np
import pytest

from llama_cpt.mixture_law import selection
from llama_cpt.mixture_law.analyze import analyze, compare_pairs
from llama_cpt.mixture_law.law import Refusal
from llama_cpt.mixture_law.objective import Bound, Weights
from llama_cpt.mixture_law.runs_table import filter_comparable, repeated_noise
from llama_cpt.mixture_law.surface import GroupSurface
from tests.mixture_law.worlds import (
    ALMR,
    BASE,
    RATES,
    grid,
    joined,
    noisy,
    plausible,
    plausible_losses,
    recommendation_of,
    sized,
)

OBJECTIVE = Bound(0.03)


def best_of_world(objective=OBJECTIVE):
    """Return ALMR and learning rate of the true optimum, by a grid search."""
    almr, rates = grid(np.linspace(0.1, 0.9, 401), np.geomspace(RATES[0], RATES[-1], 401))
    losses = plausible_losses(almr, rates)
    best = np.argmin(objective.evaluate(losses["additional"], losses["original"], BASE["original"]))
    return almr[best], rates[best]


@pytest.fixture(scope="module")
def law():
    return analyze(plausible(), objective=OBJECTIVE, next_runs=3)


@pytest.mark.parametrize("objective", [OBJECTIVE, Weights(1.0, 1.0)])
def test_optimum_is_recovered_when_no_form_is_true(objective, law):
    found = law if objective == OBJECTIVE else analyze(plausible(), objective=objective)
    found = recommendation_of(found)
    almr, rate = best_of_world(objective)
    assert abs(found.almr.value - almr) < 0.05
    assert abs(np.log10(found.learning_rate.value / rate)) < 0.1
    assert found.poor_fit is None and found.extrapolation is None
    for interval in (found.almr, found.learning_rate, *found.losses.values()):
        assert interval.low <= interval.value <= interval.high


def test_recommendation_is_on_the_bound(law):
    assert law.recommendation.losses["original"].value == pytest.approx(1.03 * 2.24, rel=1e-4)


def test_prediction_intervals_contain_new_runs(law):
    almr, rates = grid(np.linspace(0.15, 0.85, 8), np.geomspace(2e-3, 1e-2, 8))
    new = noisy(almr, rates, plausible_losses(almr, rates), 0.002, seed=5)
    for group, interval in law.predict(almr, rates).items():
        inside = (interval.low <= getattr(new, group)) & (getattr(new, group) <= interval.high)
        assert inside.mean() > 0.65  # Below 90 %, because no form is true.
    assert law.predict(0.5, 3e-3)["original"].value.shape == ()
    assert law.predict(almr[:, None], rates[None])["original"].high.shape == (64, 64)


def test_optimal_rate_is_the_best_rate_of_each_ratio(law):
    line, rates = law.optimal_rate, law.optimal_rate.learning_rate
    assert line.slope.low < line.slope.value < line.slope.high < 0
    losses = law.predict(line.almr[:, None], np.geomspace(RATES[0], RATES[-1], 300)[None])
    value = law.evaluate_objective(losses["additional"].value, losses["original"].value)
    best = np.geomspace(RATES[0], RATES[-1], 300)[np.argmin(value, axis=1)]
    np.testing.assert_allclose(np.log(rates.value), np.log(best), atol=0.02)


def test_front_is_not_dominated(law):
    for front in (law.predicted_front, law.measured_front):
        assert (np.diff(front.additional) > 0).all() and (np.diff(front.original) < 0).all()
    assert set(law.measured_front.run) <= set(law.runs.run)


def test_next_runs_are_new_and_reduce_the_variance(law):
    measured = set(zip(law.runs.almr, law.runs.learning_rate, strict=True))
    chosen = [(run.almr, run.learning_rate) for run in law.next_runs]
    assert len(set(chosen) - measured) == 3
    assert all(ALMR[0] <= almr <= ALMR[-1] for almr, _ in chosen)
    assert all(RATES[0] * 0.999 < rate < RATES[-1] * 1.001 for _, rate in chosen)
    left = [1.0] + [run.remaining for run in law.next_runs]
    assert all(0 < b < a for a, b in zip(left, left[1:], strict=False))


def test_same_seed_gives_same_law(law):
    again = analyze(plausible(), objective=OBJECTIVE)
    assert again.recommendation == law.recommendation


def refusal(runs, objective=OBJECTIVE, **options):
    """Return the refusal of the analysis of the runs as text."""
    law = analyze(runs, objective=objective, **options)
    assert law.recommendation is None
    return str(law.refusal)


@pytest.mark.parametrize(
    ("almr", "rates", "message"),
    [
        (
            ALMR,
            RATES[:2],
            r"learning rate is at the edge of the grid \(0.003\); add runs at higher",
        ),
        (
            (0.6, 0.7, 0.8, 0.9),
            RATES,
            r"ALMR is at the edge of the grid \(0.6\); add runs at lower",
        ),
    ],
)
def test_optimum_at_the_edge_is_refused(almr, rates, message):
    assert re.search(message, refusal(plausible(almr=almr, rates=rates)))


@pytest.mark.parametrize("target", [None, 3e6])
def test_bound_that_no_setting_meets_is_refused(target, monkeypatch):
    # With a held-out size error of 10 %, the bound is inside the interval at the target but not
    # inside the interval at the fitted size.
    wide = lambda *parts: GroupSurface(*parts[:-1], size_error=0.1)  # noqa: E731
    monkeypatch.setattr(selection, "GroupSurface", wide)
    almr, rates = grid()
    x, off = np.log(rates / 4.2e-3), almr - 0.5
    losses = {
        "additional": 3.0 * np.exp(0.02 * x**2 + 0.2 * off**2),
        "original": 1.1 * BASE["original"] * np.exp(0.02 * x**2 + 0.2 * off**2),
    }
    reason = refusal(noisy(almr, rates, losses, 0.001, seed=0), target_parameters=target)
    assert "No setting keeps the original loss within 3 % of the base model's" in reason
    assert re.search(
        r"the lowest predicted loss is \+(9.\d|10.\d)% relative to it, at ALMR 0\.", reason
    )


def test_fewer_runs_than_parameters_are_refused():
    reason = refusal(plausible(almr=(0.3, 0.7), rates=RATES[:2]))
    assert "No form could be fitted to the additional loss: 4 runs do not determine" in reason


def test_two_rates_do_not_identify_a_parabola():
    law = analyze(plausible(rates=RATES[1:3]), objective=OBJECTIVE)
    refused = {
        form.form for form in law.forms if form.refusal and "not identifiable" in form.refusal
    }
    assert "quadratic" in refused


def test_one_rate_per_size_is_refused():
    tables = [sized(size, rates=(rate,)) for size, rate in ((1e6, 3e-3), (4e6, 1.5e-3))]
    assert "has one ratio or one learning rate" in refusal(joined(*tables))


def test_pure_noise_is_refused():
    runs = plausible()
    rng = np.random.default_rng(3)
    shuffled = replace(
        runs,
        additional=rng.permutation(runs.additional),
        original=rng.permutation(runs.original),
    )
    assert "cannot rank the settings" in refusal(shuffled)


def test_large_seed_noise_is_refused():
    tables = [plausible(noise=0.06, seed=seed) for seed in range(2)]
    law = analyze(joined(*tables), objective=OBJECTIVE)
    assert law.noise["original"] == pytest.approx(0.06, rel=0.3)
    assert "cannot be distinguished from noise" in str(law.refusal)


def valley(almr, rates):
    """Return losses with a narrow diagonal valley that no form can describe."""
    x, odds = np.log(rates / 4e-3), np.log(almr / (1 - almr))
    depth = np.exp(-(((x + 0.5 * odds) / 0.15) ** 2))
    return {"additional": 3.0 - 0.4 * depth, "original": 2.26 - 0.05 * depth}


def two_optima(almr, rates):
    """Return losses with two local minima of the additional loss."""
    x = np.log(rates / 4.2e-3)
    wells = [
        np.exp(-(((x - sign * 0.7) / 0.3) ** 2) - ((almr - 0.5) / 0.2) ** 2) for sign in (-1, 1)
    ]
    return {"additional": 3.0 - 0.4 * (wells[0] + wells[1]), "original": 2.26 - 0.05 * wells[0]}


@pytest.mark.parametrize("losses", [valley, two_optima])
@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_poor_fit_is_refused_or_marked(losses, seed):
    almr, rates = grid()
    law = analyze(noisy(almr, rates, losses(almr, rates), 0.002, seed), objective=OBJECTIVE)
    assert law.refusal or recommendation_of(law).poor_fit


def test_singular_forms_leave_out_pure_ratios():
    runs = plausible(almr=(0.0, 0.25, 0.5, 0.75, 1.0))
    law = analyze(runs, objective=OBJECTIVE)
    left_out = {(form.form, form.group): form.left_out for form in law.forms}
    assert left_out["d-cpt", "additional"] == left_out["cpt-dynamics", "original"] == 0
    assert left_out["quadratic", "original"] == left_out["sailor", "additional"] == 4
    assert all(form.held_out and form.held_out.overall > 0 for form in law.forms)
    assert sum("singular" in note for note in law.notes) == 4


def test_undecayed_runs_are_left_out():
    constant = replace(sized(1e6, tokens=1e7), schedule=np.full(20, "constant"))
    law = analyze(joined(plausible(), constant), objective=OBJECTIVE)
    assert len(law.runs) == 20 and "without decay" in law.notes[0]
    alone = analyze(
        joined(constant, replace(constant, tokens=np.full(20, 2e7))), objective=OBJECTIVE
    )
    assert set(alone.runs.tokens) == {2e7}


def test_other_batches_and_schedules_are_left_out():
    usual = np.full(20, 1e5)
    other = plausible(seed=1, batch_tokens=np.full(20, 4e5)).where(np.arange(5))
    linear = plausible(seed=2, schedule=np.full(20, "linear"), batch_tokens=usual).where(
        np.arange(4)
    )
    runs, notes = filter_comparable(joined(plausible(batch_tokens=usual), other, linear))
    assert len(runs) == 20 and not repeated_noise(runs)
    assert "5 of 29 runs have a batch size other than most" in notes[0]
    assert "4 of 24 runs have a schedule other than the most frequent one, 'wsd'" in notes[1]


def test_run_without_final_loss_is_left_out():
    runs = plausible()
    runs.original[3] = np.nan
    law = analyze(runs, objective=OBJECTIVE)
    assert len(law.runs) == 19 and "no final loss" in law.notes[0]


def test_unstated_values_are_nan():
    unknown = np.full(20, np.nan)
    runs = replace(plausible(), parameters=unknown, tokens=unknown, base_additional=unknown)
    found = recommendation_of(analyze(runs, objective=OBJECTIVE))
    assert np.isnan([found.parameters, found.tokens, found.base["additional"]]).all()
    assert abs(found.almr.value - best_of_world()[0]) < 0.05


@pytest.mark.slow
def test_pairs_are_compared():
    spanish = replace(plausible(seed=1), pair=np.full(20, "en-es"))
    law = analyze(joined(plausible(), spanish), objective=OBJECTIVE)
    assert str(law.one_for_all).startswith("Yes")
    difference = law.pairs[1].almr_difference
    assert difference and difference.low < 0 < difference.high
    slower = replace(spanish, learning_rate=spanish.learning_rate / 3)
    law = analyze(joined(plausible(), slower), objective=OBJECTIVE)
    difference = law.pairs[1].decades_difference
    assert str(law.one_for_all).startswith("No") and difference and difference.low > 0.3


def test_refused_pair_does_not_hide_the_others(law):
    laws = {
        "en-ar": replace(law, recommendation=None, refusal=Refusal(("Too few.",))),
        "en-es": law,
        "en-zh": law,
    }
    rows, summary = compare_pairs(laws)
    assert [row.pair for row in rows] == ["en-es", "en-zh", "en-ar"]
    assert summary.startswith("Yes") and summary.endswith("no recommendation for en-ar.")
