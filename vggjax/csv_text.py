"""Write CSV lines that spreadsheets show as text, and read them back exactly.

A spreadsheet runs a cell that begins with = + - @, a tab, a carriage return or an escape as a
formula, whether it is quoted or not. Such a text is written with an apostrophe before it, which
spreadsheets take for "this is text", and read back without it. Control characters, which move a
terminal's cursor or do worse, are written as \\x1b, in a cell that begins with '\\.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from typing import Any

_FORMULA = re.compile(r"'*[=+\-@\t\r\n\x1b\uff1d\uff0b\uff0d\uff20]")
"""The last four are the full-width = + - @. An apostrophe before is escaped, too."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ESCAPED = re.compile(r"'\\((?:[^\\]|\\\\|\\x[0-9a-f]{2})*)", re.DOTALL)


def csv_line(cells: Iterable[object]) -> str:
    """Return a line of a CSV file, with its end; a cell that is no string is a number."""
    return ",".join(map(_quoted, cells)) + "\n"


def csv_rows(lines: Iterable[str], **format: Any) -> Iterator[list[str]]:
    """Yield the cells of each row, as they were given to `csv_line`; `format` is `csv.reader`'s."""
    for row in csv.reader(lines, **format):
        yield [original_text(cell) for cell in row]


def original_text(cell: str) -> str:
    """Return the text that `csv_line` was given for a cell."""
    if escaped := _ESCAPED.fullmatch(cell):
        return re.sub(r"\\(\\|x(..))", lambda m: chr(int(m[2], 16)) if m[2] else m[1], escaped[1])
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell


def _quoted(cell: object) -> str:
    text = str(cell)
    if isinstance(cell, str) and (_CONTROL.search(text) or _ESCAPED.fullmatch(text)):
        text = text.replace("\\", r"\\")
        text = "'\\" + _CONTROL.sub(lambda match: rf"\x{ord(match[0]):02x}", text)
    elif isinstance(cell, str) and _FORMULA.match(text):
        text = f"'{text}"
    # Python's writer leaves a lone carriage return unquoted, which readers take for a line's end.
    if re.search(r'^\s|[",\r\n]', text):
        return '"' + text.replace('"', '""') + '"'
    return text
