"""Read a CSV into its columns and rows, whatever program wrote it.

The text is UTF-8 or UTF-16, the delimiter a comma, a semicolon, a tab, a vertical bar or, without
any of these, a blank; quoting is as in Python's csv module. Cells stay the text that they are:
`007`, `NA` and `1.0` are no numbers. In a `.jsonl`, each line is an object whose keys are columns.
"""

import csv
import dataclasses
import io
import json
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vggjax.csv_text import original_text
from vggjax.data.images.formats import ENDINGS
from vggjax.data.sources.source import nearest_path
from vggjax.errors import ConfigError, DataError, join_names, printable, unknown_name

EXTENSIONS = (".csv", ".tsv", ".txt", ".lst", ".jsonl")
"""Extensions, in lower case, of datasets that are a CSV."""

SYNONYMS = {
    "path": (
        *("path", "paths", "file", "files", "filename", "filepath", "imagepath", "imagename"),
        *("image", "images", "imageid", "img", "imgid", "id", "photo", "photoid", "imagefile"),
    ),
    "label": (
        *("label", "labels", "class", "classes", "classname", "classid", "category", "categories"),
        *("target", "targets", "species", "breed", "tag", "tags", "diagnosis", "dx", "name"),
    ),
    "split": ("split",),
}
"""Role -> the names of its columns, in lower case without punctuation, the first one preferred."""

EXPECTED = "Expected a first line path,label or path,label,split."
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_ROW_NUMBERS = re.compile(r"(unnamed: ?\d+)?", re.IGNORECASE)
"""The name of the column of row numbers that pandas and R write."""


@dataclass(frozen=True)
class Table:
    """The cells of a CSV."""

    name: str
    """Its path, for messages."""
    columns: tuple[str, ...]
    """The names in the first line."""
    rows: list[tuple[str, ...]]
    """A cell for each column."""
    lines: list[int]
    """The line that each row ends on, from 1."""
    first_line: int = 1
    """The line of the names."""

    def cells(self, column: str) -> list[str]:
        """Return the cells of a column."""
        i = self.columns.index(column)
        return [row[i] for row in self.rows]

    def find(self, column: str, *, setting: str) -> str:
        """Return the column that a setting names, in any case.

        Raises:
            ConfigError: there is none, with the nearest one, or there are several.
        """
        matches = [name for name in self.columns if name.lower() == column.lower()]
        exact = [name for name in matches if name == column] or matches
        if not matches:
            names = [name for name in self.columns if name]
            raise ConfigError(
                f"`{setting}`: {unknown_name(f'column of {self.name}', column, names)}"
            )
        if len(exact) > 1:
            raise ConfigError(f"{self.name} has {len(exact)} columns {column!r}. Keep one.")
        return exact[0]

    def named(self, role: str) -> list[str]:
        """Return the columns whose name says that they are the paths, labels or splits."""
        exact = [name for name in self.columns if name.lower() == role]
        if len(exact) > 1:
            raise DataError(f"{self.name} has {len(exact)} columns {role!r}. Keep one.")
        plain = {name: re.sub(r"[\W_]", "", name).lower() for name in self.columns}
        known = [name for name in self.columns if plain[name] in SYNONYMS[role]]
        likely = [name for name in self.columns if re.search(r"\blabels?\b", name.lower())]
        return exact or known or (likely if role == "label" else [])

    def described(self) -> tuple[str, ...]:
        """Return the columns without that of the row numbers."""
        return tuple(name for name in self.columns if not _ROW_NUMBERS.fullmatch(name))

    def without_header(self) -> "Table":
        """Return the table whose first line is a row, too; its columns are numbered."""
        columns = tuple(f"column {i + 1}" for i in range(len(self.columns)))
        rows, lines = [self.columns, *self.rows], [self.first_line, *self.lines]
        return dataclasses.replace(self, columns=columns, rows=rows, lines=lines)

    def with_column(self, name: str, cells: Sequence[str]) -> "Table":
        """Return the table with one more column."""
        rows = [(*row, cell) for row, cell in zip(self.rows, cells, strict=True)]
        return dataclasses.replace(self, columns=(*self.columns, name), rows=rows)


def name_lines(lines: Iterable[int]) -> str:
    """Return `line 3`, or `lines 3, 4, 5 and 2 more`."""
    lines = list(lines)
    return f"line{'s' * (len(lines) > 1)} {join_names(lines, most=3)}"


MAX_TABLE_BYTES = 512 * 2**20
MAX_LINE_BYTES = 2**20
"""Of the first line, which has the names of the columns."""


def read_table(path: Path, *, exact: bool = False) -> Table:
    """Read a CSV; with `exact`, the cells as a run wrote them, in any bytes.

    Raises:
        DataError: it does not exist, is not text or not a CSV, or has no rows.
    """
    name, text = printable(path), _read_text(path, exact=exact)
    if path.suffix.lower() == ".jsonl":
        return _read_json_lines(name, text)
    if given := re.match(r'"?sep=(.)"?\r?\n', text):  # Excel's way of naming the delimiter
        text = "\n" + text[given.end() :]
    lines = enumerate(io.StringIO(text, newline=""), 1)
    used = ((i, line) for i, line in lines if line.strip() and not _is_comment(line))
    first_line, header = next(used, (1, ""))
    if not header:
        raise DataError(f"{name} is empty. {EXPECTED}")
    try:
        columns, delimiter = _read_header(header, _DELIMITERS if given is None else given[1])
    except csv.Error as error:
        raise DataError(f"{name} is not a CSV: line {first_line}: {error}. {EXPECTED}") from None
    reader = csv.reader(
        (line for _, line in lines), delimiter=delimiter, strict=True, skipinitialspace=not exact
    )
    records: list[tuple[int, list[str]]] = []
    line = first_line
    try:
        for cells in reader:
            line = first_line + reader.line_num
            if any(cells):
                records.append((line, cells))
    except csv.Error as error:
        raise DataError(
            f"{name} is not a valid CSV after line {line}: {error}. Is a quote left open?"
        ) from None
    if not records:
        raise DataError(f"{name} has no rows after its first line.")
    numbers = [str(i) for i in range(len(records) + 1)]
    is_numbered = [cells[0] for _, cells in records] in (numbers[:-1], numbers[1:])
    if is_numbered and all(len(cells) == len(columns) + 1 for _, cells in records):
        columns = ["", *columns]  # R gives no name to its row numbers
    if delimiter == " " and any(len(cells) != len(columns) > 1 for _, cells in records):
        columns = [columns[0], " ".join(columns[1:])]  # `1005649.jpg apple pie`
        records = [(line, [cells[0], " ".join(cells[1:])]) for line, cells in records]
    width = len(columns)
    for line, cells in records:
        if any(cells[width:]):
            raise DataError(
                f"Line {line} of {name} has {len(cells)} cells, the first line has {width}. Quote "
                f"names that contain a {_DELIMITERS.get(delimiter, 'blank')}."
            )
    rows = [tuple(map(original_text, (cells + [""] * width)[:width])) for _, cells in records]
    return Table(name, tuple(columns), rows, [line for line, _ in records], first_line)


def _read_json_lines(name: str, text: str) -> Table:
    """Read a table of JSON objects, one a line; a list is its items with | between them."""
    records: dict[int, dict[str, str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            record = json.loads(line, parse_int=str, parse_float=str) if line.strip() else {}
            cells = {key: _cell(value) for key, value in record.items()}
        except (ValueError, RecursionError, AttributeError):
            raise DataError(
                f"Line {number} of {name} is no JSON object such as "
                f'{{"file_name": "1.jpg", "label": "cat"}}.'
            ) from None
        if cells:
            records[number] = cells
    if not records:
        raise DataError(f"{name} is empty. {EXPECTED}")
    columns = tuple(dict.fromkeys(key for cells in records.values() for key in cells))
    rows = [tuple(cells.get(key, "") for key in columns) for cells in records.values()]
    return Table(name, columns, rows, [*records])


def _cell(value: object) -> str:
    if isinstance(value, list):
        return "|".join(map(_cell, value))
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _read_text(path: Path, *, exact: bool) -> str:
    name = printable(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{name} is not a regular file. {EXPECTED}")
        if status.st_size > MAX_TABLE_BYTES:
            raise DataError(
                f"{name} has {status.st_size:,} bytes, of at most {MAX_TABLE_BYTES:,} in a table. "
                "Split it."
            )
        with open(path, "rb") as file:
            start = file.readline(MAX_LINE_BYTES)
            if len(start) == MAX_LINE_BYTES:
                raise DataError(f"{name} has a first line of over {len(start):,} bytes. {EXPECTED}")
            data = start + file.read(MAX_TABLE_BYTES)  # it may grow meanwhile
    except (FileNotFoundError, NotADirectoryError):
        near = nearest_path(path, lambda sibling: sibling.name.lower().endswith(EXTENSIONS))
        suggestion = f" Did you mean {near!r}?" if near else ""
        raise DataError(f"There is no file '{name}'.{suggestion} {EXPECTED}") from None
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}.") from None
    is_utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    if not is_utf16 and (null := data.find(b"\0")) >= 0:
        line = _line_at(data, null)
        raise DataError(f"{name} is not text: line {line} contains a null byte. {EXPECTED}")
    try:
        if is_utf16:
            return data.decode("utf-16")
        return data.decode("utf-8-sig", errors="surrogateescape" if exact else "strict")
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if is_utf16 else "UTF-8"
        raise DataError(
            f"{name} is not {encoding}: line {_line_at(error.object, error.start)}. Save it as "
            f"UTF-8 (in a spreadsheet, 'CSV UTF-8')."
        ) from None


def _line_at(data: bytes, position: int) -> int:
    return len(data[: position + 1].splitlines())


def _is_comment(line: str) -> bool:
    """Return whether a line above the header is a comment, and not `#path,label` or `#1.jpg 0`."""
    if not line.startswith("#"):
        return False
    known = {name for names in SYNONYMS.values() for name in names}
    cells = re.split("[" + "".join(_DELIMITERS) + "]", line)
    has_column = any(re.sub(r"[\W_]", "", cell).lower() in known for cell in cells)
    words = [word for cell in cells for word in cell.split()]
    return not has_column and not any(word.lower().endswith(ENDINGS) for word in words)


def _read_header(line: str, delimiters: Iterable[str]) -> tuple[list[str], str]:
    """Return the column names and the delimiter that separates them best."""
    known = {name for names in SYNONYMS.values() for name in names}

    def quality(columns: Sequence[str]) -> tuple[int, bool, int]:
        plain = {re.sub(r"[\W_]", "", name).lower() for name in columns}
        has_file = any(name.lower().endswith(ENDINGS) for name in columns)  # `1.jpg\t0,1,0`
        return len(plain & known), has_file, len(columns)

    headers = {}
    for delimiter in delimiters:
        cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
        headers[delimiter] = [cell.strip() for cell in cells]
    best = max(headers, key=lambda delimiter: quality(headers[delimiter]))
    if len(headers[best]) == 1:  # a list such as `images/1.jpg 0`
        headers[" "] = next(csv.reader([line.strip()], delimiter=" ", skipinitialspace=True), [])
        best = " "
    columns = headers[best]
    while columns and not columns[-1]:  # a delimiter at the end of the line
        columns.pop()
    return columns, best
