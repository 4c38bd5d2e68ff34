"""Laws over the ratio only, for tables with one learning rate."""

from dataclasses import replace

import numpy as np
import pytest

from llama_cpt.mixture_law.analyze import analyze
from llama_cpt.mixture_law.objective import Bound, Weights
from tests.mixture_law.worlds import make_runs

REPLAY = np.array([0, 0.01, 0.05, 0.1, 0.25, 0.5])
PILE = [3.56, 2.83, 2.57, 2.46, 2.33, 2.24]
GERMAN = [1.11, 1.12, 1.12, 1.13, 1.16, 1.22]


def table(replay, additional, original, base):
    """Return runs with the replay ratios 1 - ALMR, as in arXiv 2403.08763."""
    almr = 1 - np.asarray(replay)
    rates, bases = np.full(len(almr), 3e-4), np.full(len(almr), base)
    return make_runs(almr, rates, additional, original, base_original=bases)


def ratio_law(runs, forgetting=0.03):
    """Return the law over the ratio only; fails if there is a recommendation."""
    law = analyze(runs, objective=Bound(forgetting))
    assert law.recommendation is None and "one learning rate" in str(law.refusal)
    assert law.ratio_only
    return law.ratio_only


def test_bound_below_all_runs_limits_the_ratio_from_above():
    found = ratio_law(table(REPLAY, GERMAN, PILE, 2.17))
    assert found.critical is None and found.interval is None and found.validated
    assert "above its bound" in found.finding and "below 0.5" in found.finding


@pytest.mark.parametrize(("forgetting", "low", "high"), [(0.05, 0.5, 0.75), (0.10, 0.75, 0.9)])
def test_critical_ratio_is_between_neighboring_runs(forgetting, low, high):
    found = ratio_law(table(REPLAY, GERMAN, PILE, 2.17), forgetting)
    assert found.critical and low < found.critical < high
    assert found.validated and found.held_out and found.held_out < 0.05


def test_two_ratios_give_an_unvalidated_line():
    found = ratio_law(table([0, 0.05], [2.0, 2.0], [1.98, 1.79], 1.75))
    assert found.critical == pytest.approx(1 - 0.05 * (1.98 - 1.03 * 1.75) / 0.19, abs=1e-3)
    assert not found.validated and found.interval is None and "not validated" in found.finding


def test_bound_above_all_runs_limits_the_ratio_from_below():
    found = ratio_law(table([0.2, 0.4, 0.8], [1.2, 1.3, 1.4], [1.75, 1.74, 1.73], 1.75))
    assert "above 0.8" in found.finding


def test_interval_covers_the_truth():
    rng, held = np.random.default_rng(0), 0
    replay = np.linspace(0.05, 0.9, 8)
    for _ in range(60):
        losses = (2 + 0.3 * np.exp(-4 * replay)) * np.exp(0.002 * rng.standard_normal(8))
        interval = ratio_law(table(replay, 3 - replay, losses, 2.05 / 1.03)).interval
        assert interval
        held += interval[0] <= 1 - np.log(6) / 4 <= interval[1]
    assert 46 <= held <= 59


def test_one_ratio_is_refused():
    runs = table([0.8, 0.8], [1.0, 1.0], [1.0, 1.0], 1.0)
    law = analyze(replace(runs, learning_rate=np.array([1e-5, 2e-5])), objective=Bound())
    assert "the same ratio" in str(law.refusal) and law.recommendation is None


def test_unstated_base_is_reported():
    runs = table(REPLAY, GERMAN, PILE, 2.17)
    unknown = np.full(len(runs), np.nan)
    names = ("learning_rate", "tokens", "parameters", "base_additional", "base_original")
    law = analyze(replace(runs, **dict.fromkeys(names, unknown)), objective=Weights())
    assert law.ratio_only and "does not state" in law.ratio_only.finding
    assert "nan" not in str(law.refusal)
