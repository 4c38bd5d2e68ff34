"""Text from documents, models, files and endpoints, made safe for a terminal and for Markdown."""

from html import escape
import re

# Control characters except tab and line feed (ESC, BEL, CR, C1 and others), which control a
# terminal; marks that reorder text; line separators; and surrogates, which cannot be encoded.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MARKUP = re.compile(r"[\\`*~\[\]|]|(?<![^\W_])_|_(?![^\W_])")
_ADDRESS = re.compile(r":(?=//)|(?i:(?<=\bmailto):|(?<=\bwww)\.)|@(?!\d+\b)")


def printable(text: str) -> str:
    """Return ``text`` without characters that control a terminal or reorder other text."""
    return _UNSAFE.sub("", text)


def one_line(text: str) -> str:
    """Return ``printable(text)`` with spaces in place of line breaks."""
    return " ".join(printable(text).split("\n"))


def code_span(text: str) -> str:
    """Return ``text`` on one line as inline code in Markdown, even if it contains backticks."""
    line = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    # The spaces, which a reader does not see, separate the fence from a backtick in the text.
    return f"{fence} {line} {fence}" if "`" in line else f"`{line}`"


def escape_markdown(text: str) -> str:
    """Return ``text`` on one line, with markup, HTML, links and the end of a cell escaped.

    Underscores in words, such as those in task names, are not markup and stay unchanged.
    """
    plain = escape(one_line(text), quote=False)
    # GitHub turns bare addresses into links. A character reference in an address prevents the link.
    linkless = _ADDRESS.sub(lambda found: f"&#{ord(found[0])};", plain)
    return _MARKUP.sub(r"\\\g<0>", linkless)
