"""Open a CSV of images: the columns `path`, `label` and optionally `split`.

The first line names the columns, in any order; other columns are ignored. The text is UTF-8, the
delimiter a comma, a semicolon or a tab, quoting as in Python's csv module. A path is absolute,
below the home folder (`~`), or relative to the CSV's folder. Labels are class names, numbered in
sorted order. Splits are train, val (validation, valid) and test, in any case, for every image or
for none. Every file must exist; none is opened.

The `splits.csv` in a run folder is also accepted: its paths are relative to that run's dataset,
which the `config.json` next to it names.
"""

import csv
import io
import json
import os
import stat
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from vggjax.csv_text import original_text
from vggjax.data.sources.options import DEFAULT_OPTIONS, DatasetOptions
from vggjax.data.sources.source import SPLIT_WORDS, ImageFile, Scan, make_file_source, nearest_path
from vggjax.errors import DataError, join_names, nearest_name, printable, unknown_name

EXTENSIONS = (".csv", ".tsv")
"""Extensions, in lower case, of datasets that are a CSV."""

COLUMNS = ("path", "label", "split")

_SYNONYMS = {
    "path": ("file", "filename", "file_name", "filepath", "image", "image_path", "image_id", "img"),
    "label": ("class", "class_name", "category", "target", "name", "species", "y"),
}
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
_EXPECTED = "Expected a first line path,label or path,label,split."


class _Row(NamedTuple):
    line: int
    """The line that it ends on, from 1."""
    path: str
    label: str
    split: str
    """train, val, test, an unknown word in lower case, or empty."""


def is_csv(dataset: str) -> bool:
    """Return whether a dataset's name is that of a CSV, existing or not, and not a folder."""
    return dataset.lower().endswith(EXTENSIONS) and not os.path.isdir(os.path.expanduser(dataset))


def scan_csv(path: str | os.PathLike[str], options: DatasetOptions = DEFAULT_OPTIONS) -> Scan:
    """Open a CSV of images, collecting the errors in its rows.

    Raises:
        DataError: it does not exist, is not text, or has no columns `path` and `label`, or no rows.
    """
    path = Path(path).expanduser()
    name = printable(path)
    root, is_of_run = _find_root(path)
    columns, all_rows = _read_rows(path, exact=is_of_run)
    faults = _check_cells(name, all_rows)
    complete = [row for row in all_rows if row.path and row.label]
    rows, conflicts = _merge(name, root, complete)
    faults += conflicts
    sizes = [_size(root, row.path) for row in rows]
    missing = [row for row, size in zip(rows, sizes, strict=True) if size is None]
    if missing:
        some = join_names((f"{row.path!r} (line {row.line})" for row in missing), most=3)
        hint = " Use / instead of the backslash." if any("\\" in r.path for r in missing) else ""
        faults.append(
            f"{len(missing):,} of {len(rows):,} images in {name} do not exist: {some}. Paths are "
            f"absolute or relative to {printable(root)}.{hint}"
        )
    files = [
        ImageFile(row.path, row.label, row.split, size)
        for row, size in zip(rows, sizes, strict=True)
        if size is not None
    ]
    class_names = tuple(sorted({row.label for row in rows}))
    if len(class_names) == 1:
        faults.append(f"{name} has only one class, {class_names[0]!r}; training needs at least 2.")
    notes = []
    if unused := [column for column in columns if column not in COLUMNS]:
        notes.append(f"Unused columns: {join_names(map(repr, unused), most=10)}.")
    if num_repeated := len(complete) - len(rows):
        rows_text = f"{num_repeated:,} row{'s' * (num_repeated > 1)}"
        notes.append(f"Ignored {rows_text} with an image of an earlier row.")
    source = make_file_source(
        path.name, class_names, files, locate=lambda x: _locate(root, x), notes=notes
    )
    return Scan(
        source=source if files else None,
        faults=tuple(faults),
        missing=tuple(row.path for row in missing),
    )


def _read_rows(path: Path, *, exact: bool) -> tuple[list[str], list[_Row]]:
    """Return the column names, in lower case, and the rows; with `exact`, the cells as written."""
    name = printable(path)
    lines = enumerate(io.StringIO(_read_text(path, exact=exact), newline=""), 1)
    header_line, header = next(((i, text) for i, text in lines if text.strip()), (1, ""))
    if not header:
        raise DataError(f"{name} is empty. {_EXPECTED}")
    columns, delimiter = _read_header(header, name)
    reader = csv.reader(
        (text for _, text in lines), delimiter=delimiter, strict=True, skipinitialspace=not exact
    )
    rows: list[_Row] = []
    line = header_line
    try:
        for cells in reader:
            line = header_line + reader.line_num
            if not any(cells):
                continue
            if any(cells[len(columns) :]):
                raise DataError(
                    f"Line {line} of {name} has {len(cells)} cells, the first line has "
                    f"{len(columns)}. Quote names that contain a {_DELIMITERS[delimiter]}."
                )
            values = defaultdict(str, zip(columns, map(original_text, cells), strict=False))
            split = values["split"].strip().lower()
            rows.append(_Row(line, values["path"], values["label"], SPLIT_WORDS.get(split, split)))
    except csv.Error as error:
        raise DataError(
            f"{name} is not a valid CSV after line {line}: {error}. Is a quote left open?"
        ) from None
    if not rows:
        raise DataError(f"{name} has no rows after its first line.")
    return columns, rows


def _read_text(path: Path, *, exact: bool) -> str:
    name = printable(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{name} is not a regular file. {_EXPECTED}")
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        near = nearest_path(path, lambda sibling: sibling.name.lower().endswith(EXTENSIONS))
        suggestion = f" Did you mean {near!r}?" if near else ""
        raise DataError(f"There is no file '{name}'.{suggestion} {_EXPECTED}") from None
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}.") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{name} is UTF-16. Save it as UTF-8.")
    if (null := data.find(b"\0")) >= 0:
        line = _line_at(data, null)
        raise DataError(f"{name} is not text: line {line} contains a null byte. {_EXPECTED}")
    try:
        return data.decode("utf-8-sig", errors="surrogateescape" if exact else "strict")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8: line {_line_at(error.object, error.start)}. Save it as UTF-8 "
            f"(in a spreadsheet, 'CSV UTF-8')."
        ) from None


def _line_at(data: bytes, position: int) -> int:
    return len(data[: position + 1].splitlines())


def _read_header(line: str, name: str) -> tuple[list[str], str]:
    """Return the column names, in lower case, and the delimiter that separates them best."""
    headers = {}
    for delimiter in _DELIMITERS:
        cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
        headers[delimiter] = [cell.strip().lower() for cell in cells]
    delimiter = max(
        headers, key=lambda d: (len({"path", "label"} & set(headers[d])), len(headers[d]))
    )
    columns = headers[delimiter]
    while columns and not columns[-1]:  # a delimiter at the end of the line
        columns.pop()
    for column in COLUMNS:
        if columns.count(column) > 1:
            raise DataError(f"{name} has {columns.count(column)} columns {column!r}. Keep one.")
    missing = [column for column in ("path", "label") if column not in columns]
    if missing:
        suggestions = ""
        for column in missing:
            synonym = next((given for given in columns if given in _SYNONYMS[column]), None)
            near = synonym or nearest_name(column, columns, cutoff=0.6)
            suggestions += f" Rename {near!r} to {column!r}." if near else ""
        given = join_names((repr(column[:80]) for column in columns), most=10)
        raise DataError(
            f"{name} has no column {' and no column '.join(map(repr, missing))}; its columns are "
            f"{given}.{suggestions} {_EXPECTED}"
        )
    return columns, delimiter


def _check_cells(name: str, rows: list[_Row]) -> list[str]:
    faults = []
    for column in ("path", "label"):
        if empty := [row for row in rows if not getattr(row, column)]:
            faults.append(f"{name} has no {column} in {_lines(empty)}. Fill it in.")
    with_split = [row for row in rows if row.split]
    if not with_split:
        return faults
    if empty := [row for row in rows if not row.split]:
        faults.append(f"{name} has no split in {_lines(empty)}. Give every image a split, or none.")
    if wrong := [row for row in with_split if row.split not in SPLIT_WORDS.values()]:
        message = unknown_name("split", wrong[0].split, SPLIT_WORDS)
        faults.append(f"{name}, {_lines(wrong)}: {message}")
    elif "train" not in (row.split for row in with_split):
        faults.append(
            f"{name} has no image in the split train. Add some, or drop the column split and use "
            f"`split`."
        )
    return faults


def _merge(name: str, root: Path, rows: list[_Row]) -> tuple[list[_Row], list[str]]:
    """Return the first row of each file, and the contradictions between rows."""
    first_rows: dict[str, _Row] = {}
    conflicts: dict[str, list[tuple[_Row, _Row]]] = defaultdict(list)
    for row in rows:
        first = first_rows.setdefault(os.path.normpath(_locate(root, row.path)), row)
        for column in ("label", "split"):
            if getattr(first, column) != getattr(row, column):
                conflicts[column].append((first, row))
    faults = []
    for column, pairs in conflicts.items():
        first, row = pairs[0]
        more = f" {len(pairs) - 1:,} more such rows follow." if len(pairs) > 1 else ""
        faults.append(
            f"{name} lists {row.path!r} twice with different {column}s: {getattr(first, column)!r} "
            f"in line {first.line}, {getattr(row, column)!r} in line {row.line}.{more} Keep one."
        )
    return list(first_rows.values()), faults


def _find_root(path: Path) -> tuple[Path, bool]:
    """Return the folder that relative paths start from, and whether a run wrote the CSV."""
    if path.name != "splits.csv":
        return path.parent, False
    try:
        dataset = Path(json.loads(path.with_name("config.json").read_text("utf-8"))["dataset"])
        is_folder, exists = dataset.is_dir(), dataset.exists()
    except (OSError, ValueError, KeyError, TypeError):
        return path.parent, False
    if not exists:
        raise DataError(
            f"{printable(path)} belongs to a run on {str(dataset)!r}, which is not an existing "
            f"folder or CSV. Give that dataset instead."
        )
    return dataset if is_folder else dataset.parent, True


def _locate(root: Path, path: str) -> Path:
    return root / os.path.expanduser(path)


def _size(root: Path, path: str) -> int | None:
    try:
        status = _locate(root, path).stat()
    except (OSError, ValueError):
        return None
    return None if stat.S_ISDIR(status.st_mode) else status.st_size


def _lines(rows: list[_Row]) -> str:
    return f"line{'s' * (len(rows) > 1)} {join_names((row.line for row in rows), most=3)}"
