"""Tests that the reference pages and the architecture page match the source."""

from dataclasses import MISSING, fields
import json
import re
import runpy

from etils import epath
import pytest

import llama_cpt.config
from llama_cpt.runtime.metric_table import FORMER_KEYS, SECTIONS
from llama_cpt.runtime.metrics import read_lines
from llama_cpt.training.goodput import PARTS
from tests.conftest import ROOT

GENERATOR = runpy.run_path(str(ROOT / "docs" / "generate_reference.py"), run_name="generator")
PAGES = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launch/README.md")),
    ROOT / "benchmarks" / "README.md",
]
AT = ("", "llama_cpt", "docs")


def test_reference_pages_are_up_to_date():
    page = GENERATOR["PAGE"].read_text(encoding="utf-8")
    remedy = "run: python docs/generate_reference.py"
    assert page == GENERATOR["render"](GENERATOR["read_sections"]()), remedy
    page = GENERATOR["METRICS_PAGE"].read_text(encoding="utf-8")
    assert page == GENERATOR["render_metrics"](), remedy


def test_reference_has_every_config_class():
    names = {section.name for section in GENERATOR["read_sections"]()}
    assert names == set(llama_cpt.config.__all__)


def test_reference_has_every_field_with_its_default():
    for section in GENERATOR["read_sections"]():
        declared = fields(getattr(llama_cpt.config, section.name))
        assert [one.name for one in section.fields] == [spec.name for spec in declared]
        for shown, spec in zip(section.fields, declared, strict=True):
            required = spec.default is MISSING and spec.default_factory is MISSING
            assert (shown.default == "required") == required, f"{section.name}.{shown.name}"


def test_metrics_reference_has_every_part_of_wall_time():
    keys = {metric.key for metrics in SECTIONS.values() for metric in metrics}
    assert {key for key in keys if key.startswith("perf/seconds/")} == {
        f"perf/seconds/{part}" for part in PARTS
    }


def test_metrics_reference_lists_the_former_keys_that_are_converted(tmp_path):
    page = GENERATOR["METRICS_PAGE"].read_text(encoding="utf-8")
    former = re.findall(r"^\| `(\S+)` \| `(\S+)` \|$", page, re.MULTILINE)
    assert former == list(FORMER_KEYS.items())
    file = epath.Path(tmp_path / "metrics.jsonl")
    file.write_text(json.dumps({"step": 1, **{old.replace("NAME", "zh"): 1 for old, _ in former}}))
    assert read_lines(file) == [{"step": 1, **{new.replace("NAME", "zh"): 1 for _, new in former}}]
    keys = {metric.key for metrics in SECTIONS.values() for metric in metrics}
    assert set(FORMER_KEYS.values()) <= keys and not FORMER_KEYS.keys() & keys


def test_architecture_page_names_files_that_exist():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py|[\w/]+/)`", page))
    assert [name for name in named if not any((ROOT / at / name).exists() for at in AT)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    """A page of the site links only to pages of the site, as ``mkdocs build --strict`` requires."""
    site = ROOT / "docs"
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    targets = [(page.parent / link).resolve() for link in links]
    assert [target for target in targets if not target.exists()] == []
    if page.is_relative_to(site):
        assert [target for target in targets if not target.is_relative_to(site)] == []
