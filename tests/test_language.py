"""Tests of the style rules that a program can check in docstrings, messages and pages.

``CONTRIBUTING.md`` lists all rules. ``codespell`` in ``make lint`` checks the spelling.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
import re

import pytest

from tests.conftest import ROOT

SOURCES = sorted(
    path.relative_to(ROOT)
    for folder in ("llama_cpt", "pallas_kernels", "examples", "benchmarks", "configs")
    for path in (ROOT / folder).rglob("*.py")
)
GENERATED = {Path("docs/reference/config.md"), Path("docs/notes/study/report.md")}
PAGES = sorted(
    path.relative_to(ROOT)
    for pages in (ROOT.glob("*.md"), (ROOT / "docs").rglob("*.md"), (ROOT / "launch").glob("*.md"))
    for path in pages
)
MAX_PROSE = 100
# First words of a docstring that cannot begin a sentence of its own.
OPENINGS = re.compile(
    r"^(of|with|by|as|to|from|in|on|at|for|beside|within|where|what|that|whose|which|so|until|"
    r"without|between|around|behind|refuse|see)\b",
    re.IGNORECASE,
)
BANNED = {
    r"\btold\b(?! apart)": "reported, printed",
    r"\btells\b": "reports, states",
    r"\bbeside\b": "next to",
    r"(?<!there )\bis none\b": "is not a, does not exist",
    r"\bgoes on\b": "resumes, continues",
    r"\banew\b": "again, from the start",
    r"\bmay pass\b": "is transient",
    r"\b(GB|MB|bytes|FLOPs|rows|tokens) a (device|chip|step|second)\b": "per",
}


def docstrings(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of every docstring in ``file``, including those of fields and
    constants."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                yield statement.lineno, statement.value.value


def messages(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of every string in ``file`` that has several words and is no
    docstring."""
    found = {text for _, text in docstrings(file)}
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.count(" ") >= 3 and node.value not in found:
                yield node.lineno, node.value


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line of ``page`` outside tables and code."""
    in_code = False
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not line.startswith(("|", "![", "    ")):
            yield number, line


@pytest.mark.parametrize("file", SOURCES, ids=str)
def test_docstrings_stand_alone(file):
    found = [f"{file}:{n}: {text[:60]!r}" for n, text in docstrings(file) if OPENINGS.match(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("file", SOURCES, ids=str)
def test_docstrings_and_messages_use_standard_terms(file):
    found = [
        f"{file}:{line}: {match[0]!r}: write {instead}"
        for line, text in (*docstrings(file), *messages(file))
        for pattern, instead in BANNED.items()
        if (match := re.search(pattern, text))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in GENERATED], ids=str)
def test_prose_is_at_most_100_columns(page):
    assert not [f"{page}:{number}" for number, line in prose(page) if len(line) > MAX_PROSE]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    missing = [link for link in links if not (ROOT / page.parent / link).exists()]
    assert not missing, f"{page} links to {missing}"


def test_nothing_refers_to_documents_that_are_not_here():
    absent = re.compile(r"\b(STYLE|DESIGN|REDESIGN|FAULTS|LAWS|LAW2|PEERS2?)(\.md|'s)")
    for file in (*SOURCES, *PAGES):
        assert not absent.search((ROOT / file).read_text(encoding="utf-8")), file
