"""Tests that imports follow the order of folders in docs/folder_order.csv."""

import ast
import csv
from graphlib import TopologicalSorter
from pathlib import Path
import re

import pytest

from tests.conftest import ROOT

PACKAGES = ("llama_cpt", "pallas_kernels")
FILES = {
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__init__.py"
}
COMMANDS = Path("llama_cpt")
with open(ROOT / "docs" / "folder_order.csv", encoding="utf-8", newline="") as file:
    CONTENTS = {Path(row["folder"]): row["contents"] for row in csv.DictReader(file)}
ORDER = list(CONTENTS)


def file_of(module: str) -> Path | None:
    """Return the project's file of module ``module``, or None if it is not in the project."""
    file = Path(*module.split(".")).with_suffix(".py")
    return file if file in FILES else None


def imported_names(file: Path) -> set[str]:
    """Return every dotted name that ``file`` imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports(file: Path) -> set[Path]:
    """Return the files of the project that ``file`` imports."""
    return {found for name in imported_names(file) if (found := file_of(name))}


@pytest.mark.parametrize("file", sorted(FILES), ids=lambda file: file.as_posix())
def test_imports_come_from_the_same_folder_or_a_lower_one(file):
    folder = file.parent
    assert folder in ORDER, f"docs/folder_order.csv does not list {folder}"
    for other in imports(file):
        same = other.parent == folder and folder != COMMANDS
        lower = ORDER.index(other.parent) < ORDER.index(folder)
        assert same or lower, f"{file} imports {other}, which is not below it"


def test_modules_have_no_cycle():
    list(TopologicalSorter({file: imports(file) for file in FILES}).static_order())


def test_functions_have_at_most_60_lines():
    """The limit includes the docstring. Pallas kernels are exempt."""
    long = [
        f"{file}:{node.lineno} {node.name}"
        for file in sorted(FILES)
        if file.parts[0] != "pallas_kernels"
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and node.end_lineno
        and node.end_lineno - node.lineno >= 60
    ]
    assert long == []


def test_files_have_at_most_400_lines():
    sizes = {file: len((ROOT / file).read_text("utf-8").splitlines()) for file in sorted(FILES)}
    assert {str(file): size for file, size in sizes.items() if size > 400} == {}


def test_every_listed_folder_exists():
    assert [folder for folder in ORDER if not (ROOT / folder).is_dir()] == []


def test_architecture_page_shows_the_order():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)/` \| (.+?) \|$", page, re.M)
    assert [(Path(folder), contents) for folder, contents in rows] == list(CONTENTS.items())


def test_commands_are_the_files_with_a_main():
    with_main = {file for file in FILES if '__name__ == "__main__"' in (ROOT / file).read_text()}
    assert with_main == {file for file in FILES if file.parent == COMMANDS}


def test_low_folders_import_few_libraries():
    forbidden = {
        "pallas_kernels": {"llama_cpt", "flax"},
        "llama_cpt/mixture_law": {"jax", "flax", "optax", "orbax"},
    }
    for folder, roots in forbidden.items():
        for file in FILES:
            if file.parent == Path(folder):
                assert not roots & {name.split(".")[0] for name in imported_names(file)}, file


def test_package_does_not_import_the_examples():
    for file in FILES:
        assert not any(name.split(".")[0] == "examples" for name in imported_names(file)), file
