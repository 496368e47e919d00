"""Opens a list of images: a CSV or TSV file with the columns `path`, `label` and, maybe, `split`.

The first line names the columns, in any order; further ones are not used. UTF-8; the delimiter is
what parts `path` from `label` there: a comma, a semicolon or a tab; quotes are those of Python's
csv. A path is absolute, below the home folder (`~`), or below the list's folder. Labels are class
names, numbered in their sorted order as strings. Splits are train, val (validation, valid) and
test, in any case, for every image or for none. Every file is looked for at once, none is opened.

The `splits.csv` that a run writes opens as well: its paths are below the dataset of the run, which
the `config.json` beside it names.
"""

import json
import os
import stat
from collections import defaultdict
from pathlib import Path

import numpy as np

from vggjax.data.images.decode import read_image
from vggjax.data.sources.csv_rows import COLUMNS, ENDINGS, Row, read_rows
from vggjax.data.sources.remarks import join_names, remarks_on_classes
from vggjax.data.sources.source import SPLIT_WORDS, Scan, Source, fingerprint
from vggjax.errors import DataError, printable, unknown_name


def is_list(dataset: str) -> bool:
    """Tells a list of images, existing or not, by its ending; a folder of that name is none."""
    return dataset.lower().endswith(ENDINGS) and not os.path.isdir(os.path.expanduser(dataset))


def open_csv(path: str | os.PathLike[str]) -> Source:
    """Reads a list of images; reads none of them yet.

    Raises:
        DataError: the list cannot be read, or contradicts itself, or names what is not there.
    """
    return scan_csv(path).checked()


def scan_csv(path: str | os.PathLike[str]) -> Scan:
    """Reads a list of images, whatever is wrong with what it says.

    Raises:
        DataError: it is no list: not there, no text, no columns `path` and `label`, no lines.
    """
    path = Path(path).expanduser()
    root, is_ours = _find_root(path)
    columns, rows = read_rows(path, exact=is_ours)
    if not rows:
        raise DataError(f"{printable(path)} names no image: nothing follows its first line.")
    here, faults = printable(path), []
    faults += _check_cells(here, rows)
    rows = [row for row in rows if row.path and row.label]
    rows, repeated, conflicts = _merge(here, root, rows)
    faults += conflicts
    sizes = [_size(root, row.path) for row in rows]
    missing = [row for row, size in zip(rows, sizes, strict=True) if size is None]
    if missing:
        faults.append(_describe_missing(here, root, missing, len(rows)))
    there = [(row, size) for row, size in zip(rows, sizes, strict=True) if size is not None]
    class_names = tuple(sorted({row.label for row in rows}))
    if len(class_names) == 1:
        faults.append(
            f"{here} has only one class, {class_names[0]!r}; a classifier needs two or more."
        )
    notes = remarks_on_classes(class_names)
    if unused := [name for name in columns if name not in COLUMNS]:
        notes.append(f"Columns that are not used: {join_names(unused)}.")
    if repeated:
        notes.append(
            f"{repeated:,} line{' repeats an image' if repeated == 1 else 's repeat images'} of "
            f"earlier lines and count{'s' if repeated == 1 else ''} once."
        )
    return Scan(
        source=_make_source(path, root, class_names, there, notes) if there else None,
        faults=tuple(faults),
        missing=tuple(row.path for row in missing),
    )


def _make_source(
    path: Path,
    root: Path,
    class_names: tuple[str, ...],
    found: list[tuple[Row, int]],
    notes: list[str],
) -> Source:
    number = {name: i for i, name in enumerate(class_names)}
    labels = np.asarray([number[row.label] for row, _ in found], np.int32)
    ids = [row.path for row, _ in found]
    of = np.asarray([row.split for row, _ in found])
    splits = {name: np.flatnonzero(of == name) for name in ("train", "val", "test")}
    own = {name: part for name, part in splits.items() if len(part)} or None
    return Source(
        name=path.name,
        class_names=class_names,
        labels=labels,
        ids=ids,
        splits=own,
        read=lambda i: read_image(_place(root, ids[i])),
        fingerprint=fingerprint(class_names, ids, labels, own, [size for _, size in found]),
        locate=lambda i: Path(_place(root, ids[i])),
        notes=tuple(notes),
    )


def _check_cells(here: str, rows: list[Row]) -> list[str]:
    faults = []
    for name in ("path", "label"):
        if empty := [row.line for row in rows if not getattr(row, name)]:
            faults.append(f"{here} has no {name} in {_lines(empty)}. Fill it in.")
    with_split = [row for row in rows if row.split]
    if not with_split:
        return faults
    if empty := [row.line for row in rows if not row.split]:
        faults.append(
            f"{here} has no split in {_lines(empty)}, and one in others. Give every image a "
            f"split, or none."
        )
    if wrong := [row for row in with_split if row.split not in SPLIT_WORDS.values()]:
        message = unknown_name("split", wrong[0].split, SPLIT_WORDS)
        faults.append(f"{here}, {_lines([row.line for row in wrong])}: {message}")
    elif "train" not in (row.split for row in with_split):
        faults.append(
            f"{here} has no image in the split train. Leave the column split out, and --split "
            f"cuts the images."
        )
    return faults


def _merge(here: str, root: Path, rows: list[Row]) -> tuple[list[Row], int, list[str]]:
    """Gives the rows of different files, the number of repeated ones, and what contradicts."""
    kept: dict[str, Row] = {}
    repeated, conflicts = 0, defaultdict(list)
    for row in rows:
        first = kept.setdefault(os.path.normpath(_place(root, row.path)), row)
        if first is row:
            continue
        repeated += 1
        for kind in ("label", "split"):
            if getattr(first, kind) != getattr(row, kind):
                conflicts[kind].append((first, row))
    faults = []
    for kind, pairs in conflicts.items():
        first, row = pairs[0]
        more = f" So {len(pairs):,} times." if len(pairs) > 1 else ""
        faults.append(
            f"{here} names {row.path!r} twice with different {kind}s: {getattr(first, kind)!r} in "
            f"line {first.line}, {getattr(row, kind)!r} in line {row.line}.{more} Keep one."
        )
    return list(kept.values()), repeated, faults


def _find_root(path: Path) -> tuple[Path, bool]:
    """Gives the folder that relative paths are below, and whether a run wrote the list."""
    if path.name != "splits.csv":
        return path.parent, False
    try:
        dataset = json.loads(path.with_name("config.json").read_text("utf-8"))["dataset"]
        is_folder, is_there = os.path.isdir(dataset), os.path.exists(dataset)
    except (OSError, ValueError, KeyError, TypeError):
        return path.parent, False
    if not is_there:
        raise DataError(
            f"{printable(path)} belongs to a run on {dataset!r}, which is no folder and no list of "
            f"images that is there. Give that dataset itself."
        )
    return Path(dataset) if is_folder else Path(dataset).parent, True


def _place(root: Path, path: str) -> str:
    return os.path.join(root, os.path.expanduser(path))


def _size(root: Path, path: str) -> int | None:
    try:
        status = os.stat(_place(root, path))
    except (OSError, ValueError):
        return None
    return None if stat.S_ISDIR(status.st_mode) else status.st_size


def _describe_missing(here: str, root: Path, missing: list[Row], total: int) -> str:
    some = ", ".join(f"{row.path!r} (line {row.line})" for row in missing[:3])
    more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
    slashes = " Write / for the backslash." if any("\\" in row.path for row in missing) else ""
    return (
        f"{len(missing):,} of {total:,} images in {here} are not there: {some}{more}. Paths are "
        f"absolute or below {printable(root)}.{slashes}"
    )


def _lines(numbers: list[int]) -> str:
    some = ", ".join(map(str, numbers[:3]))
    more = f" and {len(numbers) - 3:,} more" if len(numbers) > 3 else ""
    return f"line{'s' if len(numbers) > 1 else ''} {some}{more}"
