"""Find the labels in a table: one column, a column of 0 and 1 per class, or several in a cell.

Nothing is taken silently: a note names the column that was found, and labels that look like
combinations of labels, or like measurements, are pointed out.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import NamedTuple

from vggjax.data.sources.csv_table import EXPECTED, Table, name_lines
from vggjax.data.sources.options import DatasetOptions
from vggjax.data.sources.source import SPLIT_WORDS
from vggjax.errors import DataError, join_names

SEPARATORS = ("|", ";", ",", "/", "+", "&", " ")
"""What may separate the labels in a cell, in the order of trial."""

_FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
_GROUP_WORDS = {
    *("patient", "patients", "subject", "subjects", "case", "cases", "lesion", "lesions", "group"),
    *("groups", "video", "videos", "person", "participant", "individual", "scene", "sequence"),
    *("clip", "study", "specimen", "slide", "donor", "session", "burst", "track"),
}
_SPLIT_NAME = re.compile(
    rf"(is|in|for)({'|'.join(SPLIT_WORDS)})(set|data|image|img)?|k?folds?(id|no)?|partition|subset"
)
_MIN_NUMBERS = 20
"""Fewer different numbers are classes."""

_MIN_PIXELS = 64


class LabelColumns(NamedTuple):
    """The columns that hold the labels."""

    names: tuple[str, ...]
    """One, or one per class with 0 and 1."""
    note: str
    """How they were found; empty if they were named."""


class Combinations(NamedTuple):
    """Labels that are several labels."""

    separator: str
    number: int
    """How many of the labels are combinations."""
    labels: tuple[str, ...]
    """What they are combinations of, sorted."""


def is_group_name(column: str) -> bool:
    """Return whether a column is named as what several images may show: `patient_id`."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column).lower()
    words = [re.sub(r"(?<=..)(id|ids|no|nr|name)$", "", w) for w in re.findall(r"[^\W\d_]+", text)]
    return not _GROUP_WORDS.isdisjoint(words)


def has_splits(cells: Iterable[str]) -> bool:
    """Return whether cells are the names of splits, train among them."""
    splits = {SPLIT_WORDS.get(cell.strip().lower()) for cell in {*cells}}
    return {"train"} < splits <= {*SPLIT_WORDS.values()}


def looks_like_split(table: Table, column: str) -> bool:
    """Return whether a column holds splits, or flags or numbers under a name such as `is_valid`."""
    cells = {*table.cells(column)}
    name = re.sub(r"[\W_\d]", "", column).lower()
    return has_splits(cells) or (
        bool(_SPLIT_NAME.fullmatch(name))
        and all(re.fullmatch(r"(?i)true|false|\d\d?(\.0)?", cell) for cell in cells)
    )


def find_label_columns(table: Table, path: str, options: DatasetOptions) -> LabelColumns:
    """Find the columns of the labels, other than that of the paths.

    Raises:
        ConfigError: a column that `label_column` names does not exist.
        DataError: none, or several that could be it.
    """
    if options.label_column:
        names = [table.find(name, setting="label_column") for name in options.label_column]
        return LabelColumns(tuple(names), "")
    named = [name for name in table.named("label") if name != path]
    if [name.lower() for name in named] == ["label"]:
        return LabelColumns((named[0],), "")
    group = (options.group_column or "").lower()
    taken = {path, *table.named("split")}
    taken |= {name for name in table.columns if looks_like_split(table, name)}
    others = [c for c in table.described() if c not in taken and c.lower() != group]
    likely = [name for name in others if not is_group_name(name)] or others
    flags = [name for name in likely if _is_flag(table.cells(name))]
    if len(flags) > 1 and not named:
        if options.task == "multilabel" or all(sum(row) == 1 for row in _read_flags(table, flags)):
            classes = join_names(map(repr, flags), most=10)
            note = f"{len(flags)} columns of 0 and 1 are the classes: {classes}; `label_column`"
            return LabelColumns(tuple(flags), f"{note} names others.")
        likely = [name for name in likely if name not in flags]
    for candidates in (named, likely, [name for name in likely if _repeats(table, name)]):
        best = _without_equivalents(table, candidates)
        if len(best) == 1:
            note = f"The labels are in the column {best[0]!r}; `label_column` names another."
            return LabelColumns((best[0],), note)
    if len(flags) > 1:
        raise DataError(
            f"{table.name} has {len(flags)} columns of 0 and 1, and rows with none or several "
            f"ones, such as {name_lines(_rows_of_several(table, flags))}. For several labels per "
            f"image set `task` multilabel; else name the column of the labels as `label_column`."
        )
    shown = [f"{name!r} ({len({*table.cells(name)}):,} values)" for name in named or others]
    raise DataError(
        f"{table.name} has {'no column' if not shown else 'several columns'} that may be the "
        f"labels{': ' * bool(shown)}{join_names(shown)}. Name it as `label_column`. {EXPECTED}"
    )


def read_labels(
    table: Table, columns: Sequence[str], paths: Sequence[str], options: DatasetOptions
) -> tuple[list[tuple[str, ...]], list[str], list[str]]:
    """Read the labels of each row, which is of the image of `paths`.

    Returns:
        The labels, (N,), an empty tuple for a row without; notes; and errors.

    Raises:
        DataError: columns that are not 0 and 1, or cells without a separator.
    """
    if len(columns) > 1:
        zeros = sorted(set().union(*(_check_flags(table, name) for name in columns)))
        notes = [f"As a label, {join_names(map(repr, zeros))} counts as 0."] if zeros else []
        rows = _read_flags(table, columns)
        labels = [tuple(c for c, on in zip(columns, row, strict=True) if on) for row in rows]
        faults = []
        if options.task == "multiclass" and (lines := _rows_of_several(table, columns)):
            faults.append(
                f"{table.name} has no label or several in {name_lines(lines)}. For several labels "
                f"per image set `task` multilabel."
            )
        empty = [c for i, c in enumerate(columns) if not any(row[i] for row in rows)]
        notes += [f"Columns without a 1 are no classes: {join_names(empty)}."] if empty else []
        return labels, notes, faults
    cells = table.cells(columns[0])
    if options.task == "multiclass":
        return [(cell,) if cell else () for cell in cells], [], []
    separator, notes = options.label_separator, []
    if separator is None and (bits := _read_bits(cells)):
        names = [f"{i:0{len(str(len(bits[0]) - 1))}}" for i in range(len(bits[0]))]
        notes.append(
            f"The cells are lists of 0 and 1: labels are numbered, {names[0]} to {names[-1]}."
        )
        return [tuple(compress(names, row)) for row in bits], notes, []
    recurs = len({*zip(paths, cells, strict=True)}) > len({*paths})
    if separator is None and recurs and find_combinations(filter(None, cells)) is None:
        notes.append("Each row has one of its image's labels; `label_separator` splits cells.")
        return [(cell,) if cell else () for cell in cells], notes, []
    if separator is None:
        separator = _best_separator(table, columns[0])
        notes.append(f"Labels are separated by {separator!r}; `label_separator` gives another.")
    return [_split_cell(cell, separator) for cell in cells], notes, []


def _read_bits(cells: Iterable[str]) -> list[list[int]]:
    """Return the numbers of cells such as `0,1,0` or `[0 1 0]`, all as long; [] for other cells."""
    cells = [*cells]
    if not all(re.fullmatch(r"\[?\s*[01]([\s,;|]+[01])+\s*\]?", cell) for cell in cells):
        return []
    bits = [[int(digit) for digit in re.findall("[01]", cell)] for cell in cells]
    return bits if len({len(row) for row in bits}) == 1 else []


def find_combinations(labels: Iterable[str]) -> Combinations | None:
    """Find out whether most labels with some separator are combinations of labels.

    Their parts are labels by themselves, or recur in a vocabulary much smaller than the number of
    combinations; and the number of parts varies, unlike that of `Tomato, late blight`.
    """
    names = {*labels}
    for separator in SEPARATORS:
        parts = {name: _split_cell(name, separator) for name in names}
        joint = {name: found for name, found in parts.items() if len(found) > 1}
        if len(joint) < 2 or len({len(found) for found in parts.values()}) < 2:
            continue
        single = {found[0] for found in parts.values() if len(found) == 1}
        made = [found for found in joint.values() if single.issuperset(found)]
        uses = Counter(part for found in joint.values() for part in found)
        is_compact = 2 * len(uses) <= len(joint) and min(uses.values()) > 2
        if 2 * len(made) > len(joint) or is_compact:
            vocabulary = {*uses} if is_compact else {part for found in made for part in found}
            number = sum(vocabulary.issuperset(found) for found in joint.values())
            return Combinations(separator, number, tuple(sorted(vocabulary)))
    return None


def describe_combinations(labels: Iterable[str]) -> str | None:
    """Describe labels that are combinations, with the settings that read them; None if none are."""
    names = {*labels}
    if bits := _read_bits(names):
        return (
            f"{len(names):,} classes are lists of {len(bits[0])} numbers 0 and 1: for several "
            f"labels per image set `task` multilabel."
        )
    if (found := find_combinations(names)) is None:
        return None
    others = names.issuperset(found.labels) and len(names) == found.number + len(found.labels)
    return (
        f"{found.number:,} of {len(names):,} classes are combinations of "
        f"{'the other ' if others else ''}{len(found.labels):,}, such as "
        f"{join_names(map(repr, found.labels), most=3)}: for several labels per image set `task` "
        f"multilabel and `label_separator` {found.separator!r}."
    )


def describe_measurements(labels: Sequence[str]) -> tuple[str | None, str | None]:
    """Describe labels that look like measurements: as an error, and as a question; or None."""
    names = {*labels}
    numbers = [_number(name) for name in names]
    values = sorted(value for value in numbers if value is not None)
    if len(values) < max(len(names), _MIN_NUMBERS):
        return None, None
    if 2 * len(names) > len(labels):
        return (
            f"{len(names):,} different numbers for {len(labels):,} images look like measurements, "
            f"and every number would be a class. Replace them by a few ranges, such as low and "
            f"high.",
            None,
        )
    whole = all(value == int(value) for value in values)
    padded = any(re.match(r"0\d", name) for name in names)
    if whole and not padded and values[0] != 0 and values[-1] - values[0] == len(values) - 1:
        return None, (
            f"{len(names):,} whole numbers in a row, {values[0]:.0f} to {values[-1]:.0f}, are "
            f"classes without an order here. If they are measurements, such as ages, replace them "
            f"by a few ranges."
        )
    return None, None


def describe_pixels(table: Table) -> str | None:
    """Describe a table that holds the pixels themselves; None if it does not."""
    longest = max(table.rows[0], key=len)
    count = len(longest.split()) if re.fullmatch(r"[\d\s.]+", longest) else 1
    if count < _MIN_PIXELS:
        count = len(table.columns) - 1  # beside the label
        named = sum(bool(re.fullmatch(r"(?i)p\w*[ _]?\d+", name)) for name in table.columns)
        values = [[_number(cell) for cell in row] for row in table.rows[:20]]
        # A table of nothing but 0 and 1 has a column per class.
        is_gray = any((value or 0) > 1 for row in values for value in row[1:])
        if count < _MIN_PIXELS or values[0].count(None) > 1 or not (is_gray or named >= count):
            return None
    sides = [round(n**0.5) for n in (count, count + 1) if round(n**0.5) ** 2 == n]
    size = f"{sides[0]}x{sides[0]}" if sides else f"{count:,}"
    return (
        f"{table.name} has the pixels in the CSV, {size} values in each row, and names no image "
        f"files. Save each row as an image, FOLDER/<class>/<row>.png, and give FOLDER."
    )


def _number(text: str) -> float | None:
    is_number = re.fullmatch(r"[+-]?(\d+([.,]\d+)?|[.,]\d+)", text)
    return float(text.replace(",", ".")) if is_number else None


def _is_flag(cells: Sequence[str]) -> bool:
    """Return whether cells are all 0 and 1, or all -1 and 1."""
    values = {cell.lower() for cell in cells}
    return values <= _FLAGS.keys() or values == {"-1", "1"}


def _check_flags(table: Table, column: str) -> set[str]:
    """Check that a column holds 0 and 1; return the other cells that count as 0, "" and "-1"."""
    cells = table.cells(column)
    odd = {cell: i for i, cell in reversed([*enumerate(cells)]) if cell.lower() not in _FLAGS}
    if odd.keys() <= {""} or _is_flag(cells):
        return {*odd}
    cell = next(cell for cell in odd if cell)
    raise DataError(
        f"Several columns of labels hold 0 and 1; {column!r} of {table.name} has {cell!r} in "
        f"{name_lines([table.lines[odd[cell]]])}. Replace it by 0 or 1."
    )


def _read_flags(table: Table, columns: Sequence[str]) -> list[tuple[bool, ...]]:
    cells = [[_FLAGS.get(cell.lower(), False) for cell in table.cells(name)] for name in columns]
    return list(zip(*cells, strict=True))


def _rows_of_several(table: Table, columns: Sequence[str]) -> list[int]:
    """Return the lines of the rows that have not exactly one 1."""
    rows = _read_flags(table, columns)
    return [line for line, row in zip(table.lines, rows, strict=True) if sum(row) != 1]


def _repeats(table: Table, column: str) -> bool:
    values = {*table.cells(column)} - {""}
    return 2 <= len(values) <= len(table.rows) / 2


def _without_equivalents(table: Table, columns: Sequence[str]) -> list[str]:
    """Leave out columns that divide the rows as another one does, and numbers rather than text."""
    kept: dict[tuple[int, ...], str] = {}
    for name in columns:
        first: dict[str, int] = {}
        partition = tuple(first.setdefault(cell, i) for i, cell in enumerate(table.cells(name)))
        if partition not in kept or all(map(_is_number, table.cells(kept[partition]))):
            kept[partition] = name
    return list(kept.values())


def _is_number(text: str) -> bool:
    return _number(text) is not None


def _best_separator(table: Table, column: str) -> str:
    """Find what separates the labels in the cells of a column."""
    cells = [cell for cell in table.cells(column) if cell]
    if (found := find_combinations(cells)) is not None:
        return found.separator
    used = [
        sep
        for sep in SEPARATORS[:-1]
        if sep != "/"
        if any(len(_split_cell(c, sep)) > 1 for c in cells)
    ]
    if len(used) == 1:
        return used[0]
    what = "several separators" if used else "no separator"
    raise DataError(
        f"The cells of the column {column!r} of {table.name} have {what}"
        f"{': ' * bool(used)}{join_names(map(repr, used))}. Give `label_separator`, which may "
        f"be '|' where each cell is one label, or leave `task` multilabel out to train for one "
        f"label per image."
    )


def _split_cell(cell: str, separator: str) -> tuple[str, ...]:
    """Return the labels in a cell, also in one that Python wrote as a list."""
    if re.fullmatch(r"\s*\[.*\]\s*", cell):
        cell = re.sub(r"['\"]", "", cell.strip()[1:-1])
    parts = (part.strip() for part in cell.split(separator))
    return tuple(dict.fromkeys(part for part in parts if part))
