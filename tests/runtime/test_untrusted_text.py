"""Tests that untrusted text cannot act on a terminal or in Markdown."""

import logging
import sys
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from llama_cpt.runtime import logs
from llama_cpt.runtime.errors import UserError, one_line_errors
from llama_cpt.runtime.progress import Progress
from llama_cpt.runtime.untrusted_text import code_span, escape_markdown, one_line, printable

ATTACK = "a\x1b]0;title\x07\x9b31mb\rc\u202ed\u2066\x00\x7f\x85\ud800e"
# pytest-xdist cannot send log records with a lone surrogate.
WHOLE = ATTACK.replace("\ud800", "")


def test_characters_that_a_terminal_obeys_are_removed():
    assert printable(ATTACK) == "a]0;title31mbcde"
    assert printable("a\x1b[2J\x9b\r\nb\t\N{ZERO WIDTH JOINER}\u3000\u0645") == (
        "a[2J\nb\t\N{ZERO WIDTH JOINER}\u3000\u0645"
    )


@settings(deadline=None, max_examples=40)
@given(st.text())
def test_only_tabs_and_line_feeds_remain_of_control_characters(text):
    kept = printable(text)
    assert all(c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") for c in kept)
    assert "\n" not in one_line(text)
    # Parts of a stream give the same text as the whole stream.
    assert "".join(map(printable, text)) == kept


@pytest.mark.parametrize(
    "error", [UserError(f"{ATTACK}\nmore"), OSError(f"{ATTACK}\nmore"), RuntimeError(ATTACK)]
)
def test_errors_have_no_terminal_escapes(error, capsys):
    with pytest.raises(SystemExit), one_line_errors():
        raise error
    printed = capsys.readouterr().err
    assert not set(printed) & set("\x1b\x07\x9b\r\u202e\u2066") and "title" in printed
    if not isinstance(error, RuntimeError):
        assert printed == "error: a]0;title31mbcde more\n"


def test_log_lines_and_progress_lines_have_no_terminal_escapes(capsys, monkeypatch):
    logs.configure_logging()
    try:
        raise ValueError(WHOLE)
    except ValueError:
        logging.getLogger("llama_cpt").exception("of %s", WHOLE)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with Progress(WHOLE, 2.0, "rows") as progress:
        progress._shown -= 20
        progress.update(1.0)
    printed = capsys.readouterr().err
    assert not set(printed) & set("\x1b\x07\x9b\r\u202e\u2066")
    assert printed.count("a]0;title31mbcde") == 3


def test_code_span_contains_any_text():
    assert code_span("a\x1b\nb") == "`a b`"
    assert code_span("a`b``c") == "``` a`b``c ```"


def test_markdown_markup_html_and_links_are_escaped():
    assert escape_markdown("a|b\n<i>`c`</i> [d](https://e.org) *f* ~g~ _h_ i_j\x1b") == (
        r"a\|b &lt;i&gt;\`c\`&lt;/i&gt; \[d\](https&#58;//e.org) \*f\* \~g\~ \_h\_ i_j"
    )
    assert escape_markdown("www.x.org @me pass@1 C:\\d") == (r"www&#46;x.org &#64;me pass@1 C:\\d")
