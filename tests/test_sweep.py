"""Tests of the sweep command and of the sweep configs in configs/."""

from pathlib import Path
import re

import pytest

from llama_cpt import sweep
from llama_cpt.config.loading import load_config
from llama_cpt.config.sweep import SweepConfig
from llama_cpt.runtime.errors import UserError
from llama_cpt.sweeps.trials import make_chains, mean_almr, mixture_order

PAPER = "configs/llama3/sweep_8b.py"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(Path(sweep.__file__).parents[1])


def trials_of(name):
    """Return the trials of a variable of the shipped sweeps of Llama-3 8B."""
    config = load_config(f"{PAPER}:{name}", (), SweepConfig)
    return [trial for chain in make_chains(config) for trial in chain]


def test_dry_run_prints_the_cost_and_trains_nothing(capsys):
    assert sweep.main([PAPER, "--dry-run", "--chip", "v6e", "--mfu", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"40 trials +44,000 +92,274,688,000 +2\.87e\+03", printed)
    assert "v6e at MFU 50%, which is assumed" in printed
    assert "\nheld-out evaluation: its cost is not known yet (" in printed
    assert "is not prepared; run `" in printed
    assert not Path("runs/sweep_8b").exists()


def test_budget_proposes_an_affordable_grid(capsys):
    assert sweep.main([PAPER, "--budget", "6000"]) == 0
    printed = capsys.readouterr().out
    assert 'AxisConfig("data.almr", (0.1, 0.2, 0.5, 0.7))' in printed
    found = re.search(r"trials .* ([\d.e+]+)\n", printed)
    assert found
    hours = float(found[1])
    assert 5000 < hours <= 6000

    assert sweep.main([PAPER, "--budget", "2000"]) == 0
    assert "  token_budgets=(2097152000,)\n" in capsys.readouterr().out


@pytest.mark.parametrize("share", ["0/3", "4/3", "3", "a/b"])
def test_malformed_worker_is_rejected(share):
    with pytest.raises(UserError, match="--worker"):
        sweep.main([PAPER, "--worker", share])


def test_unknown_field_is_rejected():
    with pytest.raises(UserError, match="unknown field 'train.num_step'.*num_steps"):
        sweep.main([PAPER, "--dry-run", "--train.num-step", "3"])


def test_help_is_printed_without_a_config(capsys):
    with pytest.raises(SystemExit) as ended:
        sweep.main([])
    assert ended.value.code == 0 and "--dry-run" in capsys.readouterr().out


def test_mixture_orders_have_equal_tokens():
    orders = {}
    for trial in trials_of("order"):
        orders.setdefault(mixture_order(trial.config), []).append(float(mean_almr(trial.config)))
    assert orders == {name: [0.33] * 2 for name in ("interleaved", "block", "staged")}


def test_presets_cover_the_questions_of_the_paper():
    assert {t.config.data.almr for t in trials_of("ratios")} == {0.25, 0.33, 0.4}
    spanish, chinese = trials_of("spanish"), trials_of("config")
    assert {t.config.data.additional[0].name for t in spanish} == {"es"}
    assert [t.name for t in spanish] == [t.name for t in chinese]
    with pytest.raises(UserError, match=r"runs/sweep_8b/law/law\.json: no such file"):
        trials_of("rates")


def test_learning_rates_are_multiples_of_the_laws():
    config = load_config(
        "configs/llama3/sweep_8b.py:rates", ("--law", "docs/notes/study/law.json"), SweepConfig
    )
    rates = {}
    for chain in make_chains(config):
        trial = chain[0].config
        rates.setdefault(trial.data.almr, []).append(trial.optimizer.peak_learning_rate)
    for half, once, twice in rates.values():
        assert half == pytest.approx(once / 2, rel=0.01) and twice == pytest.approx(
            2 * once, rel=0.01
        )
    # A higher share of the new language has a lower optimal learning rate.
    assert rates[0.25][1] > rates[0.33][1] > rates[0.4][1]
