"""Comparisons of models: common examples, direction of metrics, findings and reports."""

import json
import math
import re

import numpy as np
import pytest

from llama_cpt.evaluation.comparison.compare import compare
from llama_cpt.evaluation.comparison.page import terminal_table, write_comparison
from llama_cpt.evaluation.scores import (
    BITS_PER_BYTE,
    ExampleScore,
    append_scores,
    write_summary,
)
from llama_cpt.runtime.errors import UserError


def write(folder, task, values, groups=("",), metric="acc", **more):
    """Append scores of a task to a model's folder; ``values`` has one row per group."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = [
        ExampleScore(task, group, str(number), metric, float(value), **more)
        for group, row in zip(groups, values, strict=True)
        for number, value in enumerate(row)
    ]
    append_scores(folder / f"{task}.jsonl", scores)


def write_bits(folder, corpus, nats, sizes):
    folder.mkdir(parents=True, exist_ok=True)
    scores = [
        ExampleScore("bpb", corpus, str(number), BITS_PER_BYTE, 0.0, nats=float(n), bytes=int(size))
        for number, (n, size) in enumerate(zip(nats, sizes, strict=True))
    ]
    append_scores(folder / "bpb.jsonl", scores)


def cell(row, model):
    found = row.cells[model]
    assert found is not None
    return found


def difference(row, model):
    found = cell(row, model).difference
    assert found is not None
    return found


@pytest.fixture
def folders(tmp_path):
    """Score folders of a base model, a tuned model, and a model with the base model's scores.

    The tuned model is better on zh and worse on en.
    """
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 5000, 200)
    right = rng.random((2, 400)) < 0.5
    places = [tmp_path / name for name in ("base", "tuned", "again")]
    for place, zh, en, better in zip(places, (1, 0.8, 1), (1, 1.3, 1), (0, 0.2, 0), strict=True):
        noise = rng.normal(1, 0.01, (2, 200)) if better else 1
        for corpus, change in (("zh", zh), ("en", en)):
            write_bits(place, corpus, (sizes * change * noise)[0] if better else sizes, sizes)
        write(place, "quiz", [right[0] | (rng.random(400) < better)])
        write(place, "hard", [right[1][:30] | (rng.random(30) < better / 4)])
    return [str(place) for place in places]


def test_findings_follow_the_intervals(folders):
    found = compare(folders)
    assert [row.name for row in found.rows] == ["bpb: zh", "bpb: en", "hard", "quiz"]
    assert found.differences == 8
    assert found.rows_with("tuned", "gained") == ["bpb: zh", "quiz"]
    assert found.rows_with("tuned", "forgotten") == ["bpb: en"]
    # 30 examples are too few for a finding, even if both models agree on all of them.
    assert found.rows_with("again", "kept") == ["bpb: zh", "bpb: en", "quiz"]
    assert found.rows_with("again", "no significant difference") == ["hard"]


def test_bits_per_byte_weight_documents_by_bytes(tmp_path):
    """The long document dominates, and the difference is relative to the first model."""
    sizes = [10_000, *[10] * 9]
    write_bits(tmp_path / "a", "zh", [size * math.log(2) for size in sizes], sizes)
    doubled = [math.log(2) * size * (1.1 if size == 10_000 else 2) for size in sizes]
    write_bits(tmp_path / "b", "zh", doubled, sizes)
    row = compare([str(tmp_path / "a"), str(tmp_path / "b")]).rows[0]
    assert cell(row, 0).score == pytest.approx(1)
    assert cell(row, 1).score == pytest.approx((1.1 * 10_000 + 2 * 90) / 10_090)
    assert difference(row, 1).value == pytest.approx(cell(row, 1).score - 1)


def test_bootstrap_resamples_whole_groups(tmp_path):
    """If scores change by whole subjects, resampling subjects gives wider intervals."""
    rng = np.random.default_rng(1)
    first = np.zeros((40, 50))
    second = np.repeat(rng.random(40) < 0.3, 50).reshape(40, 50)
    names = [f"subject {number}" for number in range(40)]
    for groups, values in (
        (names, (first, second)),
        ([""], (first.reshape(1, -1), second.reshape(1, -1))),
    ):
        for name, value in zip("ab", values, strict=True):
            write(tmp_path / str(len(groups)) / name, "quiz", value, groups)
    rows = [
        compare([str(tmp_path / count / name) for name in "ab"]).rows[0] for count in ("40", "1")
    ]
    assert [row.groups for row in rows] == [40, 0]
    widths = [np.ptp(difference(row, 1).alone) for row in rows]
    assert widths[0] > 4 * widths[1]


def test_fewer_errors_count_as_a_gain(tmp_path):
    write(tmp_path / "a", "errors", [[5.0, 6.0] * 40], metric="wer", less_is_better=True)
    write(tmp_path / "b", "errors", [[1.0, 2.0] * 40], metric="wer", less_is_better=True)
    found = write_comparison([str(tmp_path / name) for name in "ab"], str(tmp_path / "out"))
    assert difference(found.rows[0], 1).value == -4
    assert found.rows_with("b", "gained") == ["errors"]
    assert "errors (less is better)" in (tmp_path / "out/report.md").read_text()


def test_interval_of_a_share_stays_in_range_and_points_are_not_scaled(tmp_path):
    for name, values in (("a", [[0, 1, 0]]), ("b", [[1, 1, 0]])):
        write(tmp_path / name, "quiz", values)
        write(tmp_path / name, "eq_bench", [[0, 0, 0]], metric="eqbench")
        write(tmp_path / name, "points", [[10.0, 40.0, 70.0]], metric="eqbench")
    rows = {row.name: row for row in compare([str(tmp_path / name) for name in "ab"]).rows}
    low, high = difference(rows["quiz"], 1).interval
    assert low >= -100 / 3 - 1e-9 and high == pytest.approx(100 - 100 / 3)
    assert cell(rows["points"], 0).score == 40
    assert difference(rows["eq_bench"], 1).interval == (0, 0)


def test_comparison_reports_truncated_questions(tmp_path):
    write(tmp_path / "a", "quiz", [[0, 1]])
    write(tmp_path / "b", "quiz", [[0, 1]], detail={"cut": True})
    (remark,) = compare([str(tmp_path / name) for name in "ab"]).remarks
    assert remark.startswith("quiz: 2 of 2 questions were longer than the context of b")


def test_comparison_uses_common_examples_only(tmp_path):
    write(tmp_path / "a", "quiz", [[0, 1] * 20])
    write(tmp_path / "b", "quiz", [[1, 1] * 15])
    write(tmp_path / "c", "other", [[1, 1] * 15])
    row, other = compare([str(tmp_path / name) for name in "abc"]).rows
    assert (row.examples, row.left_out, row.cells[2]) == (30, 10, None)
    assert cell(row, 0).score == 50 and difference(row, 1).value == 50
    assert other.cells[:2] == (None, None) and cell(other, 2).difference is None


def test_comparison_reports_different_settings(tmp_path):
    for name, shots in (("a", 0), ("b", 5), ("c", 0)):
        write(tmp_path / name, "quiz", [[0, 1]])
        settings = {"model": name, "shots": shots}
        (tmp_path / name / "quiz.settings.json").write_text(json.dumps(settings))
    (remark,) = compare([str(tmp_path / name) for name in "abc"]).remarks
    assert remark.startswith("quiz: b and a were evaluated with different settings (shots)")


def test_compare_rejects_scores_that_do_not_compare(tmp_path):
    write(tmp_path / "a", "quiz", [[0, 1]])
    write(tmp_path / "x" / "a", "quiz", [[0, 1]])
    write(tmp_path / "b", "quiz", [[0, 1]], groups=["else"])
    write(tmp_path / "c", "quiz", [[0, 1]], metric="f1")
    write(tmp_path / "d", "quiz", [[0, math.nan]])
    messages = {
        "x/a": "two models are named a",
        "b": "quiz: a, b have no example in common",
        "c": "quiz: the models have different metrics .acc, f1",
        "d": "quiz: has scores that are not finite",
        "nowhere": "has no scores",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=message):
            compare([str(tmp_path / "a"), str(tmp_path / name)])


def test_report_is_self_contained(folders, tmp_path):
    output = tmp_path / "report"
    write_comparison(folders, str(output))
    page, text = ((output / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert not re.findall(r"https?://", page) and page.count("data:image/png;base64,") == 2
    for content in (page, text):
        assert all(
            word in content for word in ("gained", "forgotten", "kept", "no significant difference")
        )
        assert "8 differences" in content
    for name in re.findall(r"\]\((\S+?)\)", text):
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    # Without bits per byte, the figure of an earlier report is deleted.
    for folder in folders:
        (tmp_path / folder / "bpb.jsonl").unlink()
    write_comparison(folders, str(output))
    assert not (output / "languages.png").exists()


def test_report_escapes_html_in_names(tmp_path):
    for name in ("a<b>", "c|d & e"):
        write(tmp_path / name, "<i>", [[0, 1]])
    write_comparison([str(tmp_path / "a<b>"), str(tmp_path / "c|d & e")], str(tmp_path / "out"))
    page, text = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "<b>a" not in page + text and "<i>" not in page + text and "c\\|d &amp; e" in text


def test_report_escapes_markdown_in_names(tmp_path):
    for name in ("*a*", "`b` [c](d)"):
        write(tmp_path / name, "quiz_en", [[0, 1]])
    folders = [str(tmp_path / name) for name in ("*a*", "`b` [c](d)")]
    write_comparison(folders, str(tmp_path / "out"))
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.startswith("# Comparison of \\*a\\*, \\`b\\` \\[c\\](d)\n")
    assert "Each difference is a change from \\*a\\*, on the same examples" in text
    assert "[c](d)" not in text and "| quiz_en |" in text


def test_one_example_is_inconclusive_and_has_no_interval(tmp_path):
    for name, right, nats in (("a", 0, 5.0), ("b", 1, 9.0)):
        write(tmp_path / name, "quiz", [[right]])
        write_bits(tmp_path / name, "zh", [nats], [4])
    found = write_comparison([str(tmp_path / name) for name in "ab"], str(tmp_path / "out"))
    assert found.rows_with("b", "inconclusive") == ["bpb: zh", "quiz"]
    assert [difference(row, 1).value for row in found.rows] == [pytest.approx(0.8), 100]
    report = (tmp_path / "out/report.md").read_text()
    assert "100.0<br>+100.0<br>**inconclusive**" in report
    assert "+80.0 %<br>**inconclusive**" in report and "inf" not in report


def test_terminal_table_has_counts_and_one_unit_per_column(tmp_path):
    for name, better in (("a", 0), ("b", 1)):
        write(tmp_path / name, "quiz", [[0, better] * 20], chance=0.25)
        write(tmp_path / name, "errors", [[4.0 - better, 6.0 - better] * 20], metric="wer")
        write_bits(tmp_path / name, "zh", [5.0 - better] * 30, [4] * 30)
    write(tmp_path / "a", "quiz", [[], [1]], groups=("", "more"), chance=0.25)
    folders = [tmp_path / name for name in "ab"]
    summaries = [write_summary(folder) for folder in folders]
    table = terminal_table(compare([str(folder) for folder in folders]), summaries)
    header, *lines = [re.split(r"  +", line) for line in table.splitlines()]
    assert header == [
        *("task", "model", "examples", "bits per byte", "change, %", "wer", "change in wer"),
        *("score, 0 to 100", "change, points", "finding"),
    ]
    assert lines == [
        ["bpb: zh", "a", "30", "1.8034"],
        ["bpb: zh", "b", "30", "1.4427", "−20.0 % (−20.0 % to −20.0 %)", "gained"],
        ["errors", "a", "40", "5.0"],
        ["errors", "b", "40", "4.0", "−1.0 (−1.0 to −1.0)", "kept"],
        ["quiz (chance 25)", "a", "40 of 41", "0.0"],
        ["quiz (chance 25)", "b", "40 of 41", "50.0", lines[-1][-2], "gained"],
    ]
    alone = terminal_table(compare([str(folders[0])]), summaries[:1])
    assert alone.splitlines()[0].split()[-4:] == ["score,", "0", "to", "100"]
    assert alone.splitlines()[-1].split() == ["quiz", "(chance", "25)", "a", "41", "2.4"]
