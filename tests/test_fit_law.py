"""Tests of the fit_law command: summary, files, exit status and errors."""

import json
from pathlib import Path
import re
import subprocess
import sys

import pytest

from llama_cpt.config.loading import load_config
from llama_cpt.fit_law import main
from llama_cpt.mixture_law import law_file
from llama_cpt.runtime.errors import USER_ERROR, UserError
from tests.conftest import ROOT
from tests.mixture_law.example import table, write_table

BASE = str(ROOT / "configs" / "llama3" / "cpt_8b.py")
TABLES = Path(__file__).parent / "mixture_law" / "tables"
FIGURES = {"surface.png", "front.png", "forgetting.png", "fit.png"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    rows = table(sizes=(1e6,))
    return write_table(tmp_path_factory.mktemp("table") / "results.csv", rows)


@pytest.fixture
def fit(tmp_path, capsys):
    """A function that runs fit_law and returns exit status, output and output folder."""

    def run(*arguments):
        status = main([*map(str, arguments), "--output", str(tmp_path / "law")])
        return status, capsys.readouterr().out, tmp_path / "law"

    return run


def test_recommendation_is_printed_and_written_as_a_config(fit, results, tmp_path):
    lost = write_table(tmp_path / "lost.csv", [{"run": "trial 7", "almr": 0.5}])
    options = ("--next", 2, "--predict", "almr=0.6,learning_rate=5e-4")
    status, printed, folder = fit(results, lost, "--config", BASE, *options)
    assert status == 0
    names = {"law.json", "report.md", "recommended.py", *FIGURES}
    assert {path.name for path in folder.iterdir()} == names
    found = json.loads((folder / "law.json").read_text())["recommendation"]
    config, base = (
        load_config(str(folder / "recommended.py"), ["--output", "runs/x"]),
        load_config(BASE),
    )
    assert config.data.almr == pytest.approx(found["almr"], abs=5e-4)
    rate = config.optimizer.peak_learning_rate
    assert rate == pytest.approx(found["learning_rate"], rel=5e-3)
    assert config.model == base.model and config.optimizer.schedule == base.optimizer.schedule
    for group in ("additional", "original"):
        low, high = found["losses"][f"{group}_interval"]
        words = f"predicted {group} loss {found['losses'][group]:.4f} ({low:.4f} to {high:.4f})"
        for text in (printed, (folder / "recommended.py").read_text()):
            assert words in text
    assert f"ALMR {found['almr']:.3f} (90 % interval " in printed
    assert len(re.findall(r"^  0\.\d+ +\S+ +\d+%$", printed, re.M)) == 2
    predicted = law_file.load_law(str(folder / "law.json")).predict(0.6, 5e-4)["original"]
    assert (
        "0.6   5e-4           " in printed
        and f"{predicted.value:.4f} ({predicted.low:.4f}" in printed
    )
    for text in (printed, (folder / "report.md").read_text()):
        assert "Run trial 7 diverged or did not finish" in text


@pytest.mark.slow
def test_target_size_is_extrapolated_and_written_as_options(fit, results):
    status, printed, folder = fit(results, "--target-parameters", "1.2e7", "--target-tokens", "2e8")
    assert status == 0 and "12M parameters, 200M tokens" in printed
    assert "Extrapolation: the target has 12 times the largest fitted size" in printed
    assert "a prior: Step Law" in (folder / "report.md").read_text()
    assert (folder / "carry.png").exists()
    lines = (folder / "recommended.args").read_text().splitlines()
    options = [line for line in lines if not line.startswith("#")]
    config = load_config(BASE, options[0].split())
    found = json.loads((folder / "law.json").read_text())["recommendation"]
    assert len(options) == 1 and config.data.almr == pytest.approx(found["almr"], abs=5e-4)
    assert f"$(grep -v '#' {folder / 'recommended.args'})" in printed


def test_refusal_removes_earlier_recommendation(fit, tmp_path):
    few = write_table(tmp_path / "few.csv", table((1e6,), ratios=(0.2, 0.6), rates=(1e-4, 1e-3)))
    older = ("recommended.py", "recommended.args", "carry.png")
    (tmp_path / "law").mkdir()
    for name in older:
        (tmp_path / "law" / name).touch()
    status, printed, folder = fit(few)
    assert status == 3
    assert re.search(r"No recommendation:\n- .*4 runs do not determine its \d parameters", printed)
    values = json.loads((folder / "law.json").read_text(), parse_constant=pytest.fail)
    assert values["recommendation"] is None and "4 runs" in values["refusal"]["reasons"][0]
    assert "4 runs do not determine" in (folder / "report.md").read_text()
    assert {path.name for path in folder.iterdir()} == {"law.json", "report.md", "forgetting.png"}


@pytest.mark.slow
def test_target_below_fitted_sizes_is_refused(fit, results):
    status, printed, _ = fit(results, "--target-parameters", "1e5")
    assert status == 3 and "below the smallest fitted size" in printed


# Ibrahim et al., Simple and Scalable Strategies (arXiv 2403.08763): replay and final losses of a
# 405M model from the Pile to German, and of a 10B model from the Pile to SlimPajama.
@pytest.mark.parametrize(
    ("name", "forgetting", "finding"),
    [
        (
            "german_onto_pile_405m",
            0.03,
            r"above .* at every ratio in the table.* ALMR is below 0\.5",
        ),
        ("german_onto_pile_405m", 0.05, r"reaches its bound of 2\.27\d at ALMR 0\.[56]\d+"),
        (
            "slimpajama_onto_pile_10b",
            0.03,
            r"reaches its bound of 1\.80\d at ALMR 0\.9\d+.*not validated",
        ),
    ],
)
def test_tables_of_one_learning_rate_give_a_ratio_only(fit, name, forgetting, finding):
    options = ("--forgetting", forgetting, "--predict", "almr=0.7,learning_rate=1e-4")
    status, printed, folder = fit(TABLES / f"{name}.csv", *options)
    assert status == 3 and "note: --predict: no form could be fitted" in printed
    report = (folder / "report.md").read_text()
    assert re.search(finding, printed) and re.search(finding, report)
    assert ("Not validated" in report) == name.startswith("slim")
    assert "ratio.png" in report and (folder / "ratio.png").exists()
    assert "nan" not in printed.lower() and "nan" not in report.lower()


def test_target_tokens_need_the_tokens_column(fit):
    with pytest.raises(UserError, match="--target-tokens: column tokens of the table is empty"):
        fit(TABLES / "german_onto_pile_405m.csv", "--target-tokens", "1e9")


@pytest.mark.slow
def test_missing_base_loss_needs_weights(fit, tmp_path):
    rows = [row | {"base_loss": "", "base_bits_per_byte": ""} for row in table(sizes=(1e6,))]
    bare = write_table(tmp_path / "bare.csv", rows)
    with pytest.raises(UserError, match="bound on forgetting is not available.*Set --weights"):
        fit(bare)
    status, printed, folder = fit(bare, "--weights", "additional=1,original=1.5")
    assert status in (0, 3)
    report = (folder / "report.md").read_text()
    assert "relative to the base model" not in printed and "nan" not in printed + report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "additional=1"], "write --weights additional=NUMBER,original=NUMBER"),
        (["--weights", "aditional=1,original=1"], "did you mean 'additional'"),
        (["--weights", "additional=-1,original=1"], "--weights additional=-1 must be"),
        (["--predict", "almr=x,learning_rate=1"], "'x' is not a number"),
        (["--predict", "almr=1.2,learning_rate=1e-4"], "almr=1.2 must be in"),
        (["--target-base", "additional=3"], "write --target-base additional=NUMBER"),
        (["--weights", "additional=0,original=0"], "at least one weight must be above 0"),
        (["--target-base", "additional=3,original=2"], "add --target-parameters N"),
        (
            ["--target-base", "additional=3,original=2", "--target-parameters", "1e6"],
            "the table has base losses for 1e+06 parameters",
        ),
        (["--target-parameters", "-1"], "--target-parameters=-1.0 must be"),
        (["--forgetting", "-1"], "--forgetting -1 must be above -1"),
        (["--next", "-1"], "--next -1 must"),
        (["--config", "configs/nothing.py"], "no such config file"),
    ],
)
def test_invalid_options_are_rejected(fit, results, tmp_path, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        fit(results, *arguments)
    assert not (tmp_path / "law").exists()


@pytest.mark.slow
def test_user_error_is_a_one_line_message(tmp_path):
    command = [sys.executable, "-m", "llama_cpt.fit_law", "nothing.csv", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == USER_ERROR and not done.stdout
    assert (
        done.stderr.startswith("error: nothing.csv: no such file")
        and len(done.stderr.splitlines()) == 1
    )
