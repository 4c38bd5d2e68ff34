"""Strict reader of CSV text in which every line is one record."""

import csv
import re

from llama_cpt.runtime.errors import UserError

# A field is quoted, or has no quotation mark. Spreadsheets can write spaces around a quoted field.
_FIELD = r"""(?: *"(?:[^"\0]|"")*"[ \t]*|[^",\0]*)"""
_LINE = re.compile(rf"{_FIELD}(?:,{_FIELD})*")


def csv_records(path: str, text: str) -> list[tuple[int, list[str]]]:
    """Return the number and the fields of each line of ``text`` that is not blank.

    A field with a line break is an error, because after a stray quotation mark, the field would
    hide the rows that follow. Raises UserError, which names ``path`` and the line, if a line is not
    valid CSV.
    """
    records = []
    for number, line in enumerate(re.split("\r\n|\r|\n", text), 1):
        if not line.strip():
            continue
        if not _LINE.fullmatch(line):
            raise UserError(
                f"{path}:{number}: a quotation mark or a NUL byte is misplaced; a quoted field "
                "begins and ends on the same line, and a quotation mark in it is doubled. Fix the "
                "line."
            )
        try:
            # The pattern is stricter than ``strict=True``, except that it allows a space after a
            # quoted field.
            (fields,) = csv.reader([line], skipinitialspace=True)
        except csv.Error as error:  # The field is too long.
            raise UserError(f"{path}:{number}: not valid CSV ({error}); fix the line.") from None
        records.append((number, fields))
    return records
