"""Reads the lines of a list of images: CSV or TSV text with the columns path, label and split.

Out: the names of the columns, and a `Row` for each line. Whether the images are there, and what
the rows say together, is for csv_source.py. Whatever is no such text is a `DataError` of one line:
another encoding, a binary file, an open quote, a line with too many cells.
"""

import csv
import difflib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from vggjax.data.sources.remarks import join_names
from vggjax.data.sources.source import SPLIT_WORDS
from vggjax.errors import DataError, printable

ENDINGS = (".csv", ".tsv")
"""File names that are taken for a list of images; in lower case."""

MAX_BYTES = 2**30

COLUMNS = ("path", "label", "split")

_ALSO_CALLED = {
    "path": ("file", "filename", "file_name", "filepath", "image", "image_path", "image_id", "img"),
    "label": ("class", "class_name", "category", "target", "name", "species", "y"),
}
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
_WANTED = "Expected a first line path,label or path,label,split."


class Row(NamedTuple):
    """One line of a list."""

    line: int
    path: str
    label: str
    split: str
    """train, val or test, or what else is written there, in lower case; may be empty."""


def read_rows(path: Path, *, exact: bool = False) -> tuple[list[str], list[Row]]:
    """Gives the columns' names, in lower case, and the rows; empty lines are left out.

    Spaces behind a delimiter are no part of a cell, and the text must be UTF-8, unless `exact`:
    then a cell is what is written, whatever its bytes.

    Raises:
        DataError: it is not there, no text, or no table with the columns path and label.
    """
    here = printable(path)
    rows: list[Row] = []
    line = 1
    try:
        _check_file(path)
        errors = "surrogateescape" if exact else "strict"
        with path.open(encoding="utf-8-sig", errors=errors, newline="") as file:
            lines = _text_lines(file, here)
            head_line, head = next(((i, text) for i, text in lines if text.strip()), (1, ""))
            if not head:
                raise DataError(f"{here} is empty. {_WANTED}")
            columns, delimiter = _read_head(head, here)
            at = [columns.index(name) if name in columns else None for name in COLUMNS]
            reader = csv.reader(
                (text for _, text in lines),
                delimiter=delimiter,
                strict=True,
                skipinitialspace=not exact,
            )
            for cells in reader:
                line = head_line + reader.line_num
                if not any(cells):
                    continue
                if any(cells[len(columns) :]):
                    raise DataError(
                        f"Line {line} of {here} has {len(cells)} cells, the first line "
                        f"{len(columns)}. Put names that hold a {_DELIMITERS[delimiter]} into "
                        f"quotes."
                    )
                cells += [""] * (len(columns) - len(cells))
                name, label, split = ("" if i is None else cells[i] for i in at)
                split = split.strip().lower()
                rows.append(Row(line, name, label, SPLIT_WORDS.get(split, split)))
    except UnicodeDecodeError:
        raise DataError(
            f"{here} is not UTF-8, in line {_first_foreign_line(path)}. Save it as UTF-8 (a "
            f"spreadsheet calls that 'CSV UTF-8')."
        ) from None
    except csv.Error as error:
        raise DataError(
            f"{here} is no CSV that can be read, after line {line}: {error}. Is a quote left open?"
        ) from None
    except OSError as error:
        raise DataError(f"{here} cannot be read: {error.strerror or error}.") from None
    return columns, rows


def _check_file(path: Path) -> None:
    here = printable(path)
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"There is no file '{here}'.{_nearest_list(path)} {_WANTED}") from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{here} is no regular file. {_WANTED}")
    if status.st_size > MAX_BYTES:
        raise DataError(f"{here} is too large: {status.st_size:,} bytes of at most {MAX_BYTES:,}.")
    with path.open("rb") as file:
        start = file.read(2**16)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{here} is UTF-16. Save it as UTF-8.")
    if b"\0" in start:
        raise DataError(f"{here} is no text: it holds null bytes. {_WANTED}")


def _text_lines(file: TextIO, here: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, 1):
        if "\0" in line:
            raise DataError(f"Line {number} of {here} holds a null byte: that is no text.")
        yield number, line


def _first_foreign_line(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _read_head(line: str, here: str) -> tuple[list[str], str]:
    """Gives the names of the columns, in lower case, and the delimiter that parts them best."""
    heads = {}
    for delimiter in _DELIMITERS:
        cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
        heads[delimiter] = [cell.strip().lower() for cell in cells]
    delimiter = max(heads, key=lambda d: (len({"path", "label"} & set(heads[d])), len(heads[d])))
    columns = heads[delimiter]
    while columns and not columns[-1]:  # a delimiter at the end of the line
        columns.pop()
    for name in COLUMNS:
        if columns.count(name) > 1:
            raise DataError(f"{here} has {columns.count(name)} columns {name!r}. Keep one.")
    missing = [name for name in ("path", "label") if name not in columns]
    if missing:
        meant = []
        for name in missing:
            near = [column for column in columns if column in _ALSO_CALLED[name]]
            near += difflib.get_close_matches(name, columns, n=1, cutoff=0.6)
            meant += [f" Did you mean {near[0]!r}? Call it {name!r}." if near else ""]
        raise DataError(
            f"{here} has no column {' and no column '.join(map(repr, missing))}; its first line "
            f"names {join_names([name[:80] for name in columns])}.{''.join(meant)} {_WANTED}"
        )
    return columns, delimiter


def _nearest_list(path: Path) -> str:
    try:
        names = [name for name in os.listdir(path.parent) if name.lower().endswith(ENDINGS)]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f" Did you mean {str(path.with_name(near[0]))!r}?" if near else ""
