"""Reference pages and the architecture page match the source."""

from dataclasses import MISSING, fields
import re
import runpy

import llama_cpt.config
from llama_cpt.training.goodput import PARTS
from tests.conftest import ROOT

GENERATOR = runpy.run_path(str(ROOT / "docs" / "generate_reference.py"), run_name="generator")
AT = ("", "llama_cpt", "docs")


def test_config_reference_is_up_to_date():
    page = GENERATOR["PAGE"].read_text(encoding="utf-8")
    remedy = "run: python docs/generate_reference.py"
    assert page == GENERATOR["render"](GENERATOR["read_sections"]()), remedy


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
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    for part in PARTS:
        assert f"`perf/seconds/{part}`" in page


def test_architecture_page_names_files_that_exist():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py|[\w/]+/)`", page))
    assert [name for name in named if not any((ROOT / at / name).exists() for at in AT)] == []
