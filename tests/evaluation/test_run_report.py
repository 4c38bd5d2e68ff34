"""The report on training runs: its numbers, differences of configs, figures, and bad input."""

from dataclasses import replace
import json
import re

import pytest

from llama_cpt import report
from llama_cpt.config.loading import save_config
from llama_cpt.config.objectives import PreferenceConfig
from llama_cpt.config.schema import ChatConfig, OptimizerConfig
from llama_cpt.evaluation.run_report.page import make_page, summary_rows
from llama_cpt.evaluation.run_report.records import config_differences, read_run
from llama_cpt.model.flops import model_flops_per_token
from llama_cpt.runtime.errors import UserError

# A run of 8 steps with 4 rows of 32 tokens.
LINES = [
    {"step": 0, "eval/zh/bits_per_byte": 4.0, "eval/en/bits_per_byte": 1.0},
    {
        "step": 4,
        "train/zh/loss": 3.0,
        "train/original/loss": 2.0,
        "mixture/almr_target": 0.29,
        "mixture/almr_realized": 0.25,
        "perf/tokens_per_second": 1500.0,
        "perf/seconds/step": 3600.0,
        "perf/seconds/save": 360.0,
    },
    {"step": 8, "train/zh/loss": None, "eval/zh/bits_per_byte": 3.0, "eval/en/bits_per_byte": 1.1},
]


@pytest.fixture
def write(make_config, tmp_path):
    def write(name, lines=LINES, **fields):
        folder = tmp_path / name
        folder.mkdir()
        save_config(make_config(folder, **fields), folder / "config.json")
        (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        return str(folder)

    return write


def test_table_has_the_numbers_of_the_run(write, make_config, tmp_path):
    run = read_run("first", write("a"))
    config = make_config(tmp_path)
    flops = 8 * 4 * 32 * model_flops_per_token(config.architecture, 32)
    header, row = summary_rows([run])
    found = dict(zip(header, row, strict=True))
    assert found == {
        "run": "first",
        "steps": "8 of 8",
        "tokens": "1.02k",
        "model FLOPs": f"{flops:.3g}",
        "peak rate": "1e-2",
        "ALMR": "0.2500",
        "tokens/s": "1.5k",
        "hours": "1.10",
        "zh, bits per byte": "4.0000 to 3.0000 (-25.0%)",
        "en, bits per byte": "1.0000 to 1.1000 (+10.0%)",
    }
    # A mean over a group is not a corpus, and a loss that was not finite has no value.
    assert run.corpora("train/{}/loss") == ["zh"]
    assert run.series("train/zh/loss").values.tolist() == [3.0]


def test_only_differing_fields_are_listed(write, make_config, tmp_path):
    data = make_config(tmp_path).data
    second = replace(data.additional[0], name="es")
    other = replace(data, almr=0.5, additional=(*data.additional, second))
    optimizer = OptimizerConfig(peak_learning_rate=1e-2, warmup_steps=3)
    runs = [
        read_run("a", write("a")),
        read_run("b", write("b", optimizer=optimizer, data=other)),
    ]
    rows = {field: values for field, *values in config_differences(runs)}
    assert rows["field"] == ["a", "b"] and rows["optimizer.warmup_steps"] == ["2", "3"]
    assert rows["data.almr"] == ["0.29", "0.5"] and rows["data.additional.1.name"] == ["", "es"]
    # The path of the output differs between all runs.
    assert "output" not in rows and "num_steps" not in rows


def test_page_has_the_figures_that_the_runs_have_data_for(write, tmp_path, capsys):
    pairs = write(
        "$x_{<b>$",
        [{"step": 1, "train/zh/loss": 0.7}],
        objective=PreferenceConfig(loss="sigmoid"),
        data=replace(read_run("", write("c")).config.data, chat=ChatConfig()),
    )
    assert report.main([write("a"), pairs, "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == [
        "Held-out text",
        "Held-out text by compute",
        "Learned and forgotten",
        "Training loss",
        "Mixture ratio",
        "Time",
        "Differences of the configs",
    ]
    assert page.count("data:image/png;base64,") == 6 and "https://" not in page
    assert "<b>$" not in page and "&lt;b&gt;$" in page
    assert "4.0000 to 3.0000" in capsys.readouterr().out
    # A preference loss is not a loss per token, so the page of this run alone has no figure.
    alone = make_page([read_run("pairs", pairs)])
    assert "<h2>" not in alone and "no held-out text" in alone


@pytest.mark.parametrize(
    ("remove", "message"),
    [("config.json", "has no config.json"), ("metrics.jsonl", "has no metrics.jsonl")],
)
def test_folder_without_a_run_is_an_error(remove, message, write, tmp_path):
    folder = write("a")
    (tmp_path / "a" / remove).unlink()
    with pytest.raises(UserError, match=message):
        report.main([folder, "--output", str(tmp_path / "report.html")])
    with pytest.raises(UserError, match="no metrics yet"):
        read_run("b", write("b", []))
    assert not (tmp_path / "report.html").exists()
