"""Names, configs, chains and costs of the trials of a sweep."""

from dataclasses import replace
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
import pytest

from configs.demo.cpt import config as cpt
from llama_cpt.config.sweep import AxisConfig, SizeConfig, SweepConfig
from llama_cpt.model.flops import model_flops_per_token
from llama_cpt.runtime.errors import UserError
from llama_cpt.sweeps.cost import chip_hours, fit_to_budget, trial_table
from llama_cpt.sweeps.trials import make_chains, mean_almr, mixture_order, tokens_per_step

RATIOS = AxisConfig("data.almr", (0.1, 0.2, 0.33, 0.5, 0.7))
RATES = AxisConfig("optimizer.peak_learning_rate", (1e-3, 2e-3, 4e-3))
SWEEP = SweepConfig("/sweep", cpt, "en+zh", (RATIOS, RATES))
WSD = replace(cpt, optimizer=replace(cpt.optimizer, schedule="wsd", decay_steps=1))
TOKENS = tokens_per_step(cpt)


def trials_of(sweep):
    return [trial for chain in make_chains(sweep) for trial in chain]


def test_grid_has_a_trial_at_every_point():
    trials = trials_of(SWEEP)
    assert trials[1].name == "almr_0.1-peak_learning_rate_0.002"
    assert trials[1].config == replace(
        cpt,
        output="/sweep/almr_0.1-peak_learning_rate_0.002",
        data=replace(cpt.data, almr=0.1),
        optimizer=replace(cpt.optimizer, peak_learning_rate=2e-3),
    )
    assert len({trial.name for trial in trials}) == 15


def test_cells_are_combined_with_other_axes():
    seeds = (AxisConfig("seed", (0, 1)),)
    trials = trials_of(replace(SWEEP, axes=seeds, cells=((0.4, 1e-3), (0.33, 2e-3))))
    assert [t.name for t in trials][1:3] == [
        "almr_0.4-peak_learning_rate_0.001-seed_1",
        "almr_0.33-peak_learning_rate_0.002-seed_0",
    ]
    with pytest.raises(UserError, match="data.almr' appears twice"):
        replace(SWEEP, cells=((0.4, 1e-3),))


def test_sizes_have_their_own_weights():
    small, large = (replace(cpt.architecture, num_layers=layers) for layers in (1, 3))
    sizes = (SizeConfig("small", small, "bases/s"), SizeConfig("large", large, "bases/l"))
    trials = trials_of(replace(SWEEP, sizes=sizes))
    assert [t.config.architecture.num_layers for t in trials] == [1] * 15 + [3] * 15
    assert trials[-1].config.init_from == "bases/l" and trials[-1].name.startswith("large-almr_0.7")


def test_sobol_points_fill_their_ranges_and_are_fixed():
    between = (
        AxisConfig("data.almr", between=(0.1, 0.9)),
        AxisConfig("optimizer.peak_learning_rate", between=(1e-4, 1e-2), scale="log"),
    )
    sweep = replace(SWEEP, axes=(*between, AxisConfig("seed", (0, 1))), points=16)
    trials = trials_of(sweep)
    assert trials == trials_of(sweep) and len(trials) == 32
    ratios = sorted({float(mean_almr(trial.config)) for trial in trials})
    rates = sorted({trial.config.optimizer.peak_learning_rate for trial in trials})
    # A Sobol sequence of 16 has one point in each sixteenth of every axis, up to the rounding.
    assert all(abs(x - (0.1 + 0.05 * (i + 0.5))) < 0.026 for i, x in enumerate(ratios))
    assert sum(rate < 1e-3 for rate in rates) == 8


def test_names_have_as_few_digits_as_needed():
    axis = AxisConfig("optimizer.peak_learning_rate", between=(1e-3, 1.001e-3))
    names = {trial.name for trial in trials_of(replace(SWEEP, axes=(axis,), points=32))}
    assert len(names) == 32 and all(len(name) < 35 for name in names)


def test_axis_may_name_an_entry_of_a_tuple():
    axis = AxisConfig("data.additional.0.name", ("zh", "other"), names=("zh", "b"))
    sweep = replace(SWEEP, axes=(axis,), heldout_groups=(("zh", "additional"),))
    assert [t.config.data.additional[0].name for t in trials_of(sweep)] == ["zh", "other"]
    with pytest.raises(UserError, match="becomes part of a folder's name"):
        AxisConfig("seed", (0, 1), names=("../x", "y"))


def test_token_budgets_share_their_stable_phase():
    budgets = (100 * TOKENS, 200 * TOKENS, 400 * TOKENS - 1)
    (first, second, third) = make_chains(replace(SWEEP, train=WSD, token_budgets=budgets))[0]
    assert [t.config.num_steps for t in (first, second, third)] == [100, 200, 400]
    assert (first.stable_steps, second.stable_steps, third.stable_steps) == (80, 160, 320)
    assert (first.first_step, second.first_step, third.first_step) == (0, 80, 160)
    # The checkpoint at the start of a parent's decay is kept when later ones are saved.
    for trial in (first, second):
        saves = trial.config.checkpoint
        assert trial.stable_steps % saves.every_steps == 0
        later = trial.config.num_steps // saves.every_steps - (
            trial.stable_steps // saves.every_steps
        )
        # The final checkpoint counts as well, even if its step is not a multiple.
        assert saves.keep >= later + 2
    assert first.own_tokens + second.own_tokens + third.own_tokens == (100 + 120 + 240) * TOKENS


@given(st.lists(st.tuples(st.integers(1, 900), st.integers(0, 100)), max_size=5))
def test_mean_almr_is_the_share_of_all_steps(later):
    stages = {0: 0.25} | {step: percent / 100 for step, percent in later}
    almr = tuple(sorted(stages.items()))
    config = replace(cpt, data=replace(cpt.data, almr=almr), num_steps=600)
    by_step = [max(step for step in stages if step <= at) for at in range(600)]
    exact = sum(Fraction(str(stages[step])) for step in by_step) / 600
    assert mean_almr(config) == exact


def test_mixture_order_follows_from_the_stages():
    def order(almr):
        return mixture_order(replace(cpt, data=replace(cpt.data, almr=almr)))

    assert order(0.3) == "interleaved"
    assert order(((0, 1.0), (10, 0.0), (20, 1.0))) == "block"
    assert order(((0, 0.1), (10, 0.5))) == "staged"
    assert order(((0, 0.1), (10_000, 0.5))) == "interleaved"


def test_chip_hours_are_flops_over_the_chips_rate():
    trials = trials_of(SWEEP)
    flops = 15 * 600 * TOKENS * model_flops_per_token(cpt.architecture, cpt.data.sequence_length)
    assert chip_hours(SWEEP, trials) == pytest.approx(flops / (459e12 * 0.4 * 3600))
    assert "15 trials" in trial_table(SWEEP, trials)


@pytest.mark.parametrize("share", [0.99, 0.7, 0.6])
def test_a_budget_thins_the_grid_and_keeps_its_ends(share):
    price = chip_hours(SWEEP, trials_of(SWEEP))
    thinned = fit_to_budget(SWEEP, price * share)
    assert 0.5 * share * price < chip_hours(thinned, trials_of(thinned)) <= share * price
    for axis, whole in zip(thinned.axes, SWEEP.axes, strict=True):
        assert {axis.values[0], axis.values[-1]} == {whole.values[0], whole.values[-1]}
        assert len(axis.values) >= 3
    with pytest.raises(UserError, match="less than the cost of every grid.*costs"):
        fit_to_budget(SWEEP, price * 0.1)
    with pytest.raises(UserError, match="--budget=-5.0 must be"):
        fit_to_budget(SWEEP, -5.0)


def test_largest_token_budget_is_dropped_if_needed():
    both = replace(SWEEP, train=WSD, token_budgets=(100 * TOKENS, 200 * TOKENS))
    price = chip_hours(both, trials_of(both))
    thinned = fit_to_budget(both, price * 0.4)
    assert thinned.token_budgets == (100 * TOKENS,) and len(trials_of(thinned)) == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": (AxisConfig("data.almrr", (0.1,)),)}, "no such field; did you mean 'almr'"),
        ({"axes": (AxisConfig("data.almr", (0.1, 1.5)),)}, r"data.almr=1.5 must be in \[0, 1\]"),
        ({"axes": (AxisConfig("seed", ("one",)),)}, "seed='one' must be int"),
        ({"axes": (RATIOS, RATIOS)}, "appears twice"),
        ({"points": 4}, "no axis has between"),
        ({"token_budgets": (10, 20)}, "wsd"),
        ({"train": replace(cpt, data=replace(cpt.data, heldout=()))}, "a sweep needs both"),
        ({"train": WSD, "token_budgets": (1, TOKENS * 8)}, "smallest has only 1 steps"),
        ({"axes": (AxisConfig("data.original.1.weight", (1.0,)),)}, "no such field"),
        ({"chip": "v9"}, "chip='v9' must be one of"),
    ],
)
def test_config_mistakes_name_the_field(changes, message):
    with pytest.raises(UserError, match=message):
        make_chains(replace(SWEEP, **changes))
