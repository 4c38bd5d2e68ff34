"""The code stands on the floors of docs/architecture.md."""

import ast
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
COMMANDS = 7


def floors_by_entry() -> dict[str, int]:
    """File or folder -> floor, from the table."""
    found = {}
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        row = re.match(r"\| (\d+) \| ([^|]*) \|", line)
        for entry in re.findall(r"`([^`]+)`", row[2]) if row else ():
            path = entry if entry.startswith("pallas_kernels/") else f"llama_cpt/{entry}"
            assert path not in found, f"{entry} is on the table twice"
            found[path] = int(row[1])
    return found


TABLE = floors_by_entry()


def floor(file: Path) -> int:
    """Of the longest entry that names the file or a folder around it."""
    name = file.as_posix()
    folders = [f"{parent.as_posix()}/" for parent in file.parents]
    named = next((entry for entry in (name, *folders) if entry in TABLE), None)
    assert named, f"{name} is not in docs/architecture.md's table of floors"
    return TABLE[named]


def file_of(module: str) -> Path | None:
    """The project's file that a dotted name means, if it is one."""
    file = Path(*module.split(".")).with_suffix(".py")
    return file if file in FILES else None


def imports(file: Path) -> set[Path]:
    """The project's files that ``file`` imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno}: a relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {found for name in names if (found := file_of(name))}


@pytest.mark.parametrize("file", sorted(FILES), ids=lambda file: file.as_posix())
def test_imports_go_down(file):
    here = floor(file)
    for other in imports(file):
        below = floor(other) < here
        beside = floor(other) == here and other.parent == file.parent and here != COMMANDS
        assert below or beside, f"{file} (floor {here}) imports {other} (floor {floor(other)})"


def test_no_cycle():
    list(TopologicalSorter({file: imports(file) for file in FILES}).static_order())


def test_the_table_names_what_exists():
    gone = [entry for entry in TABLE if not (ROOT / entry).exists()]
    assert not gone, f"docs/architecture.md names {gone}"


def test_commands_are_the_files_with_a_main():
    with_main = {file for file in FILES if '__name__ == "__main__"' in (ROOT / file).read_text()}
    assert with_main == {file for file in FILES if floor(file) == COMMANDS}


def test_kernels_import_jax_only():
    for file in FILES:
        if file.parts[0] == "pallas_kernels":
            text = (ROOT / file).read_text(encoding="utf-8")
            roots = {
                name.split(".")[0] for name in re.findall(r"^(?:from|import) (\S+)", text, re.M)
            }
            assert "llama_cpt" not in roots and "flax" not in roots
