"""Tests that special characters in cells do not break a table."""

from llama_cpt.runtime.tables import Markdown, aligned_table, markdown_table

ROWS = [("run", "loss", "note"), ("a|b", "1.25", ""), ("c\nd", "", "")]


def test_aligned_table_omits_columns_that_are_empty():
    assert aligned_table(ROWS) == "  run  loss\n  a|b  1.25\n  c d"


def test_aligned_table_keeps_a_lone_header():
    assert aligned_table([("run", "loss")], indent="") == "run  loss"
    assert aligned_table([]) == ""


def test_markdown_table_escapes_cells():
    table = markdown_table(ROWS)
    assert table.splitlines() == [
        "| run | loss | note |",
        "| --- | --- | --- |",
        r"| a\|b | 1.25 |  |",
        "| c d |  |  |",
    ]
    assert markdown_table([(r"a\|b",)]).startswith(r"| a\\\|b |")
    assert markdown_table([(Markdown("a<br>**b**"),)]).startswith("| a<br>**b** |")


def test_aligned_table_has_no_terminal_escapes():
    assert aligned_table([("a\x1b[31m", "b\r\u202e")], indent="") == "a[31m  b"
