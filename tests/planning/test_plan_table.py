"""Tests that the table in docs/guide/plan.md and tests/golden/plan_table.json is up to date."""

from collections.abc import Sequence

import pytest

from benchmarks.plan_table import PAGE, SHIPPED, Row, cells_of, compile_row, table, with_table
from llama_cpt.planning.analytic import analytic_memory
from llama_cpt.planning.compiling import OutOfMemory
from tests.conftest import ROOT


def test_every_config_for_a_pod_is_in_the_table():
    made_for_pods = {path.stem for path in (ROOT / "configs" / "llama3").glob("*_[0-9]*b*.py")}
    sweeps = {path.stem for path in (ROOT / "configs" / "llama3").glob("sweep_*.py")}
    assert made_for_pods - sweeps == {row.name for row in table()}


def test_the_page_shows_the_table():
    page = PAGE.read_text("utf-8")
    assert "".join(with_table(page, table())) == page


def test_every_row_has_a_cell_per_column():
    page = PAGE.read_text("utf-8")
    [header] = [line for line in page.splitlines() if line.startswith("| config | topology |")]
    columns = header.strip("| ").split(" | ")
    assert columns[2] == "rows of 8,192 tokens per device"
    assert {len(row.line.strip("| ").split(" | ")) for row in table()} == {len(columns)}


def received(cells: Sequence[str]) -> float:
    """Return the GB that a device receives in collectives of all kinds, from a row's cells."""
    return sum(float(kind) for kind in cells[5].split(","))


@pytest.mark.parametrize("row", table(), ids=lambda row: row.start)
def test_analytic_memory_is_a_lower_bound(row):
    by_hand = analytic_memory(row.config, {"fsdp": row.topology.devices})
    assert by_hand.total / 1e9 < float(row.cells[0])


@pytest.mark.libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    "row", [row for row in table() if row.rows == SHIPPED], ids=lambda row: row.start
)
def test_table_equals_the_plans(row):
    check(row)


@pytest.mark.libtpu
@pytest.mark.proof
@pytest.mark.parametrize("row", table(), ids=lambda row: row.start)
def test_table_equals_new_compilations(row):
    """Compile every row; a proof does not use the figures in tests/golden/tpu.json."""
    check(row)


def check(row: Row) -> None:
    plan, _ = compile_row(row)
    peak, flops = row.cells[0], row.cells[4]
    if isinstance(plan, OutOfMemory):
        assert peak.startswith("does not fit"), plan.used
        return
    assert plan.memory.fits
    assert not plan.program.uncounted_loops and not plan.program.matrix.unknown_kernels
    assert float(cells_of(plan)[0]) == pytest.approx(float(peak), rel=0.02)
    assert received(cells_of(plan)) == pytest.approx(received(row.cells), rel=0.02)
    measured = plan.program.matrix.total / 1e12
    assert measured == pytest.approx(float(flops.split()[0]), rel=0.01)
