"""Tests of reading tables of runs: runs and curves of valid tables, errors for invalid ones."""

from collections.abc import Callable
import csv
import math
from pathlib import Path
import re

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from llama_cpt.mixture_law.runs_table import read_results
from llama_cpt.mixture_law.table import read_table
from llama_cpt.runtime.errors import UserError

COLUMNS = (
    "run,pair,parameters,tokens,step,almr,mixture_order,learning_rate,schedule,batch_tokens,seed,"
    "tokenizer,corpus,group,loss,bits_per_byte,base_loss,base_bits_per_byte"
).split(",")
RUN = {"pair": "zh onto en", "parameters": 1e6, "schedule": "wsd", "seed": 0, "tokenizer": "a"}
BASES = {"zh": 4.0, "en": 1.0}


def rows_of(almr, name=None, **changes):
    """Return the rows of one run with two evaluations on two corpora."""
    run = RUN | {"run": name or f"almr {almr}", "almr": almr, "learning_rate": 1e-3} | changes
    losses = {
        (500, "zh"): 3.0,
        (500, "en"): 1.2,
        (1000, "zh"): 2.0 - almr,
        (1000, "en"): 1.1 + almr,
    }
    return [
        run
        | {"tokens": tokens, "step": tokens // 100, "corpus": corpus}
        | {"group": "additional" if corpus == "zh" else "original"}
        | {"loss": loss, "bits_per_byte": loss / 2}
        | {"base_loss": BASES[corpus], "base_bits_per_byte": BASES[corpus] / 2}
        for (tokens, corpus), loss in losses.items()
    ]


def write(path, rows, columns=COLUMNS):
    """Write rows as a CSV file and return its path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.fixture
def rows():
    return rows_of(0.25) + rows_of(0.5) + rows_of(0.75)


@pytest.fixture
def read(tmp_path):
    """Return a function that writes tables to files and reads them as one table."""

    def write_and_read(*tables, columns=COLUMNS):
        paths = [tmp_path / f"results{number}.csv" for number in range(len(tables))]
        pairs = zip(paths, tables, strict=True)
        return read_results([write(path, table, columns) for path, table in pairs])

    return write_and_read


def test_runs_are_the_last_evaluations(read, rows):
    results = read(rows[::-1])
    runs = results.runs
    assert runs.unit == "bits per byte" and sorted(runs.almr) == [0.25, 0.5, 0.75]
    middle = runs.almr.tolist().index(0.5)
    assert runs.additional[middle] == pytest.approx(0.75)
    assert runs.original[middle] == pytest.approx(0.8)
    assert runs.base_original.tolist() == [0.5] * 3
    assert runs.tokens.tolist() == [1000] * 3
    assert results.curves[middle].tokens.tolist() == [500, 1000]
    assert results.curves[middle].original == pytest.approx([0.6, 0.8])
    assert results.corpora == {"additional": ("zh",), "original": ("en",)}
    assert not results.left_out and not results.remarks


def test_group_loss_is_the_mean_over_its_corpora(read, rows):
    code = [row | {"corpus": "code", "bits_per_byte": 2.0} for row in rows if row["corpus"] == "en"]
    assert read(rows + code).runs.original == pytest.approx([(0.675 + 2) / 2, 1.4, (0.925 + 2) / 2])


@given(order=st.permutations(range(12)), first=st.integers(1, 11))
@settings(max_examples=25, deadline=None)
def test_order_and_number_of_files_do_not_matter(tmp_path_factory, order, first):
    rows = rows_of(0.25) + rows_of(0.5) + rows_of(0.75)
    mixed = [rows[index] for index in order]
    folder = tmp_path_factory.mktemp("tables")
    whole = read_results([write(folder / "whole.csv", rows)])
    parts = [write(folder / "a.csv", mixed[:first]), write(folder / "b.csv", mixed[first:])]
    results = read_results(parts)
    order = np.argsort(results.runs.run)
    for name in ("almr", "tokens", "additional", "original", "base_original"):
        there = getattr(whole.runs, name)
        np.testing.assert_array_equal(getattr(results.runs, name)[order], there)
    assert [len(curve.tokens) for curve in results.curves] == [2, 2, 2]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in results.files.values())


def test_optional_columns_may_be_absent(read, rows):
    few = [c for c in COLUMNS if c not in ("pair", "mixture_order", "batch_tokens", "seed")]
    few = [c for c in few if c not in ("tokenizer", "schedule", "bits_per_byte", "base_loss")]
    results = read(rows, columns=few)
    assert results.runs.unit == "nats per token"
    assert np.isnan(results.runs.base_original).all()
    assert "base_loss of the original group is empty" in results.remarks[0]
    assert "base_bits_per_byte is given, but" in results.remarks[0]


def test_curve_may_begin_late(read, rows):
    late = [row for row in rows if row["almr"] != 0.5 or row["tokens"] == 1000]
    assert sorted(len(curve.tokens) for curve in read(late).curves) == [1, 2, 2]


@pytest.mark.parametrize("lost", ["end", "whole", "no losses"])
def test_diverged_run_is_left_out(read, rows, lost):
    empty = dict.fromkeys(("loss", "bits_per_byte", "base_loss", "base_bits_per_byte"), "")
    if lost == "end":
        gone = [row if row["tokens"] == 500 else row | empty for row in rows_of(1.0, "gone")]
    elif lost == "whole":
        gone = [*rows_of(1.0, "gone"), {"run": "gone"}]
    else:
        gone = [{"run": "gone"}]
    results = read(rows + gone)
    assert len(results.runs) == 3
    assert re.search("Run gone diverged or did not finish: no loss in .*:1", results.left_out[0])


def test_run_without_a_corpus_is_left_out(read, rows):
    gone = [row for row in rows_of(1.0, "gone") if row["corpus"] == "zh" or row["tokens"] == 500]
    results = read(rows + gone)
    assert len(results.runs) == 3
    assert re.search(r"Run gone .* evaluated on zh, but most .* on zh, en", results.left_out[0])


def test_several_tokenizers_need_bits_per_byte(read, rows):
    other = [row | {"tokenizer": "b"} for row in rows_of(1.0)]
    assert "2 tokenizers: losses are compared in bits per byte" in read(rows + other).remarks[0]
    other[1]["bits_per_byte"] = ""
    with pytest.raises(UserError, match=r"csv:15: bits_per_byte is empty, and .* 2 tokenizers"):
        read(rows + other)


# Row number, changed fields and expected message. Line 1 of the file is the header.
BAD_FIELDS = [
    (0, {"almr": "33"}, r"csv:2: almr=33 must be in \[0, 1\]; give a share"),
    (1, {"learning_rate": "1e-4x"}, r"csv:3: learning_rate='1e-4x' is not a number"),
    (1, {"learning_rate": ""}, r"csv:3: run .almr 0.25. has learning_rate=nan"),
    (2, {"loss": "-1"}, r"csv:4: loss=-1 must be above 0"),
    (2, {"bits_per_byte": "nan"}, r"csv:4: bits_per_byte=nan is not finite; leave the field empty"),
    (3, {"group": "added"}, r"csv:5: group='added' must be 'additional' or 'original'"),
    (0, {"schedule": "cosin"}, r"csv:2: schedule='cosin' must be one of .*did you mean 'cosine'"),
    (3, {"corpus": ""}, r"csv:5: corpus is empty"),
    (3, {"run": ""}, r"csv:5: run is empty"),
    (3, {"almr": "0.3"}, r"csv:5: run 'almr 0.25' has almr=0.3 but almr=0.25 in .*csv:2"),
    (3, {"base_bits_per_byte": "0.51"}, r"base_bits_per_byte=0.5.* two base models"),
    (3, {"tokens": "500"}, r"csv:5: the row has the same run, corpus and evaluation as .*csv:3"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "changes", "message"), BAD_FIELDS)
def test_read_results_rejects_bad_field(read, rows, row, changes, message):
    rows[row] |= changes
    with pytest.raises(UserError, match=message):
        read(rows)


def test_each_size_may_have_its_own_base(read, rows):
    other = [row | {"base_bits_per_byte": 0.7, "parameters": 2e6} for row in rows_of(0.5, "large")]
    assert len(read(rows + other).runs) == 4


def test_schedule_is_case_insensitive(read):
    results = read(rows_of(0.25) + rows_of(0.5, schedule="WSD"))
    assert set(results.runs.schedule) == {"wsd"}


def test_read_results_rejects_one_ratio(read):
    with pytest.raises(
        UserError, match=r"every run has almr=0.5, .*; add runs at a different ratio"
    ):
        read(rows_of(0.5) + rows_of(0.5, "other", learning_rate=1e-4))


def test_read_results_rejects_group_without_loss(read, rows):
    with pytest.raises(UserError, match="no row of group 'original' has a loss; evaluate"):
        read([row for row in rows if row["corpus"] == "zh"])
    with pytest.raises(UserError, match=r"has a loss \(check that a run has finished\); evaluate"):
        read([{"run": "a"}])


def test_missing_column_suggests_similar_name(read, rows):
    renamed = ["learning_rates" if name == "learning_rate" else name for name in COLUMNS]
    renamed = [name for name in renamed if "loss" not in name and "bits" not in name]
    with pytest.raises(
        UserError, match=r"missing column 'learning_rate' \(did you mean 'learning_rates'\?\)"
    ):
        read(rows, columns=renamed)
    with pytest.raises(UserError, match=r"'loss' or 'bits_per_byte'.*docs/guide/law.md"):
        read(rows, columns=renamed)
    with pytest.raises(UserError, match="two columns are named 'almr'"):
        read(rows, columns=[*COLUMNS, "almr"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty; the first line"),
        (",".join(COLUMNS).encode(), "a header but no rows"),
        (b"run,almr\na,\xff\n", r":2: not UTF-8"),
        (b"run;almr;tokens\na;1;2\n", r":1: columns are separated by ';'; save"),
        (b"run\talmr\ttokens\na\t1\t2\n", r":1: columns are separated by '.t'; save"),
        (
            ",".join(COLUMNS).encode() + b"\na" + b",1" * 20,
            r":2: the row has more fields than",
        ),
    ],
)
def test_read_results_rejects_what_is_not_a_table(tmp_path, content, message):
    (tmp_path / "results.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_results([str(tmp_path / "results.csv")])


def damaged(rows: list[str], line: int, change: Callable[[str], str]) -> str:
    return "\n".join(change(row) if i == line else row for i, row in enumerate(rows, 1)) + "\n"


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (3, lambda row: '"' + row, ":3: a quotation mark"),
        (5, lambda row: row.replace("almr 0.25", 'almr "0.25'), ":5: a quotation mark"),
        (5, lambda row: row.replace("almr 0.25", 'almr 0.25"'), ":5: a quotation mark"),
        (4, lambda row: row.replace(",", ',"x"y,', 1), ":4: a quotation mark"),
        (4, lambda row: row + "\0", ":4: a quotation mark or a NUL byte"),
        (6, lambda row: row[: len(row) // 2], r":6: the row has \d+ fields, but the header has 18"),
        (6, lambda row: row + ",", ":6: the row has more fields than the header"),
    ],
)
def test_a_damaged_line_is_named_and_hides_no_row(line, change, message, rows, tmp_path):
    """A field that spans lines would hide the rows in it."""
    table = Path(write(tmp_path / "results.csv", rows))
    lines = table.read_text().splitlines()
    table.write_text(damaged(lines, line, change))
    with pytest.raises(UserError, match=re.escape(str(table)) + message):
        read_table(str(table))
    # Two stray marks on different lines are a valid quoted field of the csv module.
    table.write_text("\n".join([lines[0], '"' + lines[1], *lines[2:5], lines[5] + '"', *lines[6:]]))
    with pytest.raises(UserError, match=":2: a quotation mark"):
        read_table(str(table))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_quoted_fields_blank_lines_and_all_line_ends_are_read(end, rows, tmp_path):
    table = Path(write(tmp_path / "results.csv", rows))
    lines = table.read_text().splitlines()
    quoted = lines[1].replace("almr 0.25", ' "almr 0.25, said ""a\u2028b""" ')
    text = end.join([lines[0], quoted, "", *lines[2:], "  ", ""])
    table.write_bytes(text.encode("utf-8-sig"))
    found = read_table(str(table)).rows
    assert len(found) == len(rows) and found[0].run == 'almr 0.25, said "a\u2028b"'
    assert found[1].location == f"{table}:4"


def test_read_results_rejects_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_results([str(tmp_path / "results.csv")])
    with pytest.raises(UserError, match="write the pattern without quotes"):
        read_results([str(tmp_path / "*.csv")])
    with pytest.raises(
        UserError, match=r"this is a folder; name the table in it, such as .*results.csv"
    ):
        read_results([str(tmp_path)])


def test_published_tables_are_read():
    # Ibrahim et al., Simple and Scalable Strategies (arXiv 2403.08763): replay and final losses.
    tables = Path(__file__).parent / "tables"
    german = read_results([str(tables / "german_onto_pile_405m.csv")]).runs
    assert german.almr.tolist() == [1, 0.99, 0.95, 0.9, 0.75, 0.5]
    assert german.base_original.tolist() == [2.17] * 6 and np.isnan(german.base_additional).all()
    assert math.isnan(german.tokens[0]) and set(german.parameters) == {405e6}
    slim = read_results([str(tables / "slimpajama_onto_pile_10b.csv")]).runs
    assert slim.original.tolist() == [1.98, 1.79] and np.isnan(slim.learning_rate).all()
