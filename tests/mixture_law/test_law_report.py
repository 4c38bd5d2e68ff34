"""Files of a law: ``law.json``, the report, figures and the recommended config."""

import dataclasses
import json
from pathlib import Path
import re

import numpy as np
import pytest

from llama_cpt.mixture_law import report as report_module
from llama_cpt.mixture_law.analyze import analyze
from llama_cpt.mixture_law.figure_style import amount, drawable, group_labels, percent, rate
from llama_cpt.mixture_law.findings import as_config, as_options, conclusion, form_rows
from llama_cpt.mixture_law.law import Refusal
from llama_cpt.mixture_law.law_file import load_law, to_json
from llama_cpt.mixture_law.objective import Bound, Weights
from llama_cpt.mixture_law.report import make_report
from llama_cpt.mixture_law.runs_table import read_results
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.tables import markdown_table
from llama_cpt.runtime.untrusted_text import escape_markdown
from tests.conftest import ROOT
from tests.mixture_law.example import table, write_table
from tests.mixture_law.worlds import recommendation_of

# A private-use character, and a character that is in few fonts.
UNDRAWABLE = "\ue123𐘀"


def size_of(png):
    """Return width and height of a PNG file in pixels."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    rows = table()
    for row in rows:
        row["corpus"] = {"zh": "中文百科", "en": f"العربية {UNDRAWABLE}"}[row["corpus"]]
    return read_results([write_table(tmp_path_factory.mktemp("table") / "results.csv", rows)])


@pytest.fixture(scope="module")
def law(results):
    return analyze(results.runs, objective=Bound(0.03), target_parameters=4e7, next_runs=2)


@pytest.fixture(scope="module")
def report(law, results):
    return make_report(law, results)


def test_law_json_round_trip(law, results, tmp_path):
    (tmp_path / "law.json").write_text(to_json(law, results))
    again = load_law(str(tmp_path / "law.json"))
    settings = (np.array([0.2, 0.5, 0.8]), np.array([2e-4, 1e-3, 2e-3]), 2e6, 5e7)
    for group, interval in law.predict(*settings).items():
        np.testing.assert_array_equal(again.predict(*settings)[group], interval)
    assert again.recommendation == law.recommendation and again.objective == law.objective
    assert again.extrapolation == law.extrapolation and again.next_runs == law.next_runs
    assert to_json(again, results) == to_json(law, results)


def test_earlier_law_json_loads_and_predicts_the_same():
    registered = load_law(str(ROOT / "docs" / "notes" / "study" / "law.json"))
    found = recommendation_of(registered)
    predicted = registered.predict(found.almr.value, found.learning_rate.value)
    for group, interval in found.losses.items():
        np.testing.assert_allclose(np.array(predicted[group]), np.array(interval), rtol=1e-12)


def test_recommended_config_starts_with_poor_fit(law):
    poor = dataclasses.replace(law.recommendation, poor_fit="Poor fit: much is missed.")
    doubtful = dataclasses.replace(law, recommendation=poor)
    for text in (as_options(doubtful), as_config(doubtful, "base.py", ".")):
        assert re.match(r'(# |""")Poor fit: much is missed\.\n', text)
        assert text.count("Poor fit") == 1


def test_unstated_values_are_null_in_law_json(tmp_path):
    results = read_results([str(Path(__file__).parent / "tables" / "german_onto_pile_405m.csv")])
    text = to_json(analyze(results.runs, objective=Weights(1.0, 2.0)), results)
    (tmp_path / "law.json").write_text(text)
    again = load_law(str(tmp_path / "law.json"))
    assert np.isnan(again.runs.tokens).all() and again.runs.tokens.dtype == float
    assert to_json(again, results) == text
    assert json.loads(text, parse_constant=pytest.fail)["table"]["grid"]["tokens"] == [None]


def test_law_json_has_readable_keys(law, results):
    values = json.loads(to_json(law, results), parse_constant=pytest.fail)
    found, written = law.recommendation, values["recommendation"]
    assert written["almr"] == found.almr.value and written["almr_interval"] == [*found.almr[1:]]
    assert written["learning_rate_interval"][0] < written["learning_rate"]
    assert written["losses"]["original"] == found.losses["original"].value
    assert values["refusal"] is None and values["objective"] == {"forgetting": 0.03}
    assert values["chosen"]["original"]["held_out"]["ratio"] > 0
    assert {form["form"] for form in values["forms"]} > {values["chosen"]["original"]["form"]}
    assert values["table"]["runs"] == 40 and values["table"]["grid"]["parameters"] == [1e6, 4e6]
    assert list(values["table"]["files"].values()) == list(results.files.values())


def test_load_law_rejects_invalid_files(law, results, tmp_path):
    file = tmp_path / "law.json"
    with pytest.raises(UserError, match="no such file"):
        load_law(str(file))
    values = json.loads(to_json(law, results))
    for broken, message in (
        ("{", "not JSON"),
        ('{"format": ' + "[" * 100_000, "nested more than 100 deep"),
        ("[]", "must be a JSON object"),
        ("{}", "format None, but this version reads format 1"),
        (json.dumps(values | {"noise": {"original": "low"}}), "'low' must be float"),
        (json.dumps(values | {"notes": "one"}), "'one' must be list"),
        (json.dumps(values | {"one_for_all": True}), "True must be str"),
        (json.dumps(values | {"forms": [1]}), "this version cannot read the file as a law"),
        (json.dumps(values | {"runs": 3}), "this version cannot read the file as a law"),
        (json.dumps(values | {"format": 0}), "format 0, but this version reads format 1"),
    ):
        file.write_text(broken)
        with pytest.raises(UserError, match=message):
            load_law(str(file))


def test_report_shows_its_figures(law, results, report):
    shown = re.findall(r"!\[[^]]*\]\(([^)]*)\)", report.text)
    pictures = {"surface.png", "front.png", "forgetting.png", "fit.png", "carry.png"}
    assert set(shown) == set(report.pictures) == pictures
    for picture in report.pictures.values():
        width, height = size_of(picture)
        assert width > 1200 and height > 700
    for part in (
        *map(escape_markdown, conclusion(law)),
        "中文百科",
        UNDRAWABLE,
        next(iter(results.files.values())),
    ):
        assert part in report.text
    assert markdown_table(form_rows(law)) in report.text


def test_names_in_the_report_are_escaped(law, results, monkeypatch):
    monkeypatch.setattr(report_module, "_pictures", lambda law, results: {})
    hostile = dataclasses.replace(
        results,
        corpora={"additional": ("<b>",), "original": ("en",)},
        remarks=("[x](y)",),
        files={"a`b": "d"},
    )
    text = make_report(dataclasses.replace(law, notes=("*n*",)), hostile).text
    for part in ("- additional: &lt;b&gt;", r"- \[x\](y)", r"- \*n\*", "- `` a`b ``, SHA"):
        assert part in text


@pytest.mark.slow
def test_report_of_weights(law, results, report):
    weighed = make_report(dataclasses.replace(law, objective=Weights(1.0, 2.0)), results)
    assert "1 * additional + 2 * original" in weighed.text
    assert weighed.pictures["surface.png"] != report.pictures["surface.png"]


def test_report_of_refusal(law, results):
    refused = dataclasses.replace(
        law, recommendation=None, refusal=Refusal(("The best ALMR is at the edge.",)), surface=None,
        optimal_rate=None, predicted_front=None, extrapolation=None, forms=(), next_runs=(),
    )  # fmt: skip
    report = make_report(refused, results)
    assert "- No recommendation:\n- The best ALMR is at the edge." in report.text
    assert set(report.pictures) == {"forgetting.png"}
    reasons = json.loads(to_json(refused, results))["refusal"]["reasons"]
    assert reasons == ["The best ALMR is at the edge."]


def test_labels_omit_names_without_font():
    assert not drawable(UNDRAWABLE)
    corpora = {"additional": (UNDRAWABLE,), "original": ("en", "code")}
    assert group_labels(corpora) == {
        "additional": "Additional",
        "original": "Original (en, code)",
    }


def test_number_formats():
    assert [rate(v) for v in (3e-4, 1.25e-5, 1e-3, 0.1)] == ["3e-4", "1.25e-5", "1e-3", "1e-1"]
    assert [amount(v) for v in (70e9, 1.5e6, 999_999_000.0, 12.0)] == ["70B", "1.5M", "1B", "12"]
    assert amount(float("nan")) == "?"
    assert percent(-0.0375) == "\N{MINUS SIGN}3.75%"
