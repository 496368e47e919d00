"""Open a CSV of images: its columns of paths, labels and, optionally, splits and groups.

The columns `path`, `label` and `split` are used as they are. Without them the column whose cells
name files is that of the paths, and the labels are the other column, several columns of 0 and 1, or
named like labels; the notes say so, and `DatasetOptions` says otherwise. A path is absolute, below
the home folder (`~`), or relative to the CSV's folder; csv_files.py finds those that are written
otherwise. Labels are class names, numbered in sorted order. Splits are train, val (validation,
valid) and test, in any case, for every image or for none. Every file must exist; none is opened.

The `splits.csv` in a run folder is also accepted: its paths are relative to that run's dataset,
which the `config.json` next to it names.
"""

import dataclasses
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from vggjax.data.images.formats import ENDINGS
from vggjax.data.sources.csv_files import FileFinder
from vggjax.data.sources.csv_labels import (
    describe_combinations,
    describe_measurements,
    describe_pixels,
    find_label_columns,
    has_splits,
    is_group_name,
    looks_like_split,
    read_labels,
)
from vggjax.data.sources.csv_table import EXPECTED, EXTENSIONS, Table, name_lines, read_table
from vggjax.data.sources.options import DEFAULT_OPTIONS, DatasetOptions
from vggjax.data.sources.source import (
    SPLIT_WORDS,
    ImageFile,
    Observation,
    PossibleGroups,
    Scan,
    Source,
    describe_groups,
    make_file_source,
    number_groups,
)
from vggjax.errors import DataError, join_names, printable, unknown_name

_MAX_COMPARED = 500
"""Cells of a column that are looked up to find the column of the paths."""


class _Row(NamedTuple):
    line: int
    """The line that it ends on, from 1."""
    path: str
    size: int | None
    """Of the file, in bytes; None if there is none."""
    labels: tuple[str, ...]
    split: str
    """train, val, test, an unknown word in lower case, or empty."""
    group: str


def is_csv(dataset: str) -> bool:
    """Return whether a dataset's name is that of a CSV, existing or not, and not a folder."""
    return dataset.lower().endswith(EXTENSIONS) and not os.path.isdir(os.path.expanduser(dataset))


def scan_csv(path: str | os.PathLike[str], options: DatasetOptions = DEFAULT_OPTIONS) -> Scan:
    """Open a CSV of images, collecting the errors in its rows.

    Raises:
        DataError: it does not exist, is not text, or has no columns of paths and labels, or no
            rows.
        ConfigError: it has no column that an option names.
    """
    path = Path(path).expanduser()
    return _Scanner(path, options).scan()


class _Scanner:
    """One scan of a CSV; collects notes and errors."""

    def __init__(self, path: Path, options: DatasetOptions) -> None:
        root, run = _find_root(path)
        if run is not None and run.get("task") == "multilabel":
            options = dataclasses.replace(options, task="multilabel", label_separator="|")
        self._options = options
        self._name = printable(path)
        self._file_name = path.name
        self._finder = FileFinder(root, path.name, exact=run is not None)
        self._table = read_table(path, exact=run is not None)
        self._notes: list[str] = []
        self._faults: list[str] = []
        self._observations: list[Observation] = []
        self._label_columns: tuple[str, ...] = ()
        self._group_column: str | None = None

    def scan(self) -> Scan:
        """Read the table and check it."""
        if (pixels := describe_pixels(self._table)) is not None:
            raise DataError(pixels)
        self._drop_header()
        rows = self._read_rows()
        self._check_rows(rows)
        is_multilabel = self._options.task == "multilabel"
        complete = [row for row in rows if row.path and (row.labels or is_multilabel)]
        rows = self._merge(complete)
        if missing := [row for row in rows if row.size is None]:
            self._refuse_missing(missing, len(rows))
        class_names = self._find_classes(rows)
        rows = [row for row in rows if row.size is not None]
        return Scan(
            source=self._make_source(rows, class_names) if rows else None,
            faults=tuple(self._faults),
            observations=tuple(self._observations),
            missing=tuple(row.path for row in missing),
        )

    def _make_source(self, rows: Sequence[_Row], class_names: tuple[str, ...]) -> Source:
        groups, targets, possible_groups = [row.group for row in rows], None, None
        if self._options.group_column is not None:
            self._notes.append(f"{describe_groups(groups)} by the column {self._group_column!r}.")
        elif self._group_column and (numbers := number_groups(groups)) is not None:
            possible_groups = PossibleGroups("group_column", self._group_column, numbers)
            groups = [""] * len(rows)
        if self._options.task == "multilabel":
            targets = np.array([[name in row.labels for name in class_names] for row in rows], bool)
        source = make_file_source(
            self._file_name,
            class_names,
            [
                ImageFile(row.path, "".join(row.labels[:1]), row.split, row.size or 0, group)
                for row, group in zip(rows, groups, strict=True)
            ],
            locate=self._finder.locate,
            notes=[*self._notes, *(observation.note for observation in self._observations)],
            targets=targets,
        )
        return dataclasses.replace(source, possible_groups=possible_groups)

    def _drop_header(self) -> None:
        """Take the first line as a row if it has no names but names a file."""
        table = self._table
        if self._finder.exact or any(table.named(role) for role in ("path", "label", "split")):
            return
        recurs = any(name in table.cells(name) for name in {*table.columns})
        is_file = any("/" in name or name.lower().endswith(ENDINGS) for name in table.columns)
        if (recurs or is_file) and self._finder.count(table.columns):
            self._table = table.without_header()
            columns = join_names(map(repr, self._table.columns), most=10)
            self._notes.append(f"The first line holds an image and no names; columns: {columns}.")

    def _read_rows(self) -> list[_Row]:
        """Find the columns and the files, and return the rows."""
        table, options = self._table, self._options
        path_column, is_named = self._find_path_column()
        files = self._finder.find(table.cells(path_column), path_column)
        if not options.label_column and table.described() == (path_column,):
            table = self._label_by_folder(files.paths)
        labels = find_label_columns(table, path_column, options)
        if not is_named and not files.notes:
            self._notes.append(
                f"The paths are in the column {path_column!r}; `path_column` names another."
            )
        self._notes += [*files.notes, *filter(None, [labels.note])]
        if several := files.several:
            i, paths = next(iter(several.items()))
            self._faults.append(
                f"{len(several):,} of {len(table.rows):,} images in {self._name} may be several "
                f"files: {table.cells(path_column)[i]!r} (line {table.lines[i]}) is "
                f"{join_names(paths, most=3)}. Write them with their folder and ending."
            )
        self._label_columns = labels.names
        values, notes, faults = read_labels(table, labels.names, files.paths, options)
        self._notes += notes
        self._faults += faults
        splits = table.named("split")
        self._group_column = self._find_group_column({path_column, *labels.names})
        used = {path_column, *labels.names, *splits, options.group_column and self._group_column}
        if unused := [name for name in table.described() if name not in used]:
            self._notes.append(f"Unused columns: {join_names(map(repr, unused), most=10)}.")
        if not splits:
            self._notes += self._describe_splits(unused)
        words = [cell.strip().lower() for cell in table.cells(splits[0])] if splits else []
        groups = table.cells(self._group_column) if self._group_column else []
        blank = [""] * len(table.rows)
        rows = zip(
            table.lines,
            files.paths,
            files.sizes,
            values,
            [SPLIT_WORDS.get(word, word) for word in words] or blank,
            groups or blank,
            strict=True,
        )
        return [_Row(*row) for i, row in enumerate(rows) if i not in several]

    def _label_by_folder(self, paths: Sequence[str]) -> Table:
        """Return the table of a list of files, with their folders as labels if these recur."""
        folders = [PurePosixPath(path).parent.name for path in paths]
        if 2 <= len({*folders}) <= len(folders) / 2:
            self._table = self._table.with_column("label", folders)
            self._notes.append("No column holds labels: they are the folders of the images.")
        return self._table

    def _describe_splits(self, unused: Iterable[str]) -> list[str]:
        """Return a note about each column that looks like splits and is not named so."""
        notes = []
        for name in unused:
            if has_splits(cells := self._table.cells(name)):
                words = join_names(sorted({*cells}))
                notes.append(f"The column {name!r} holds {words}: name it 'split' to use these.")
            elif looks_like_split(self._table, name):
                notes.append(
                    f"The column {name!r} looks like splits or folds, which are not used. For "
                    f"splits, write train, val and test in a column 'split'."
                )
        return notes

    def _find_path_column(self) -> tuple[str, bool]:
        """Return the column of the paths, and whether it is named so."""
        table, options = self._table, self._options
        if options.path_column is not None:
            return table.find(options.path_column, setting="path_column"), True
        named = table.named("path")
        if [name.lower() for name in named] == ["path"]:
            return named[0], True
        claimed = {*options.label_column, options.group_column, *table.named("split")}
        claimed |= {name for name in table.columns if name.lower() == "label"}
        counts = {}
        for column in [name for name in table.described() if name not in claimed]:
            cells = table.cells(column)
            is_class = 2 * len({*cells}) <= len(cells)  # a label `5` is no image `5.png`
            if column in named or not is_class:
                counts[column] = self._finder.count(cells[:: len(cells) // _MAX_COMPARED + 1])
        most = max(counts.values(), default=0)
        likely = [column for column, count in counts.items() if most and 2 * count > most]
        in_full = [name for name in likely if table.cells(name)[0].lower().endswith(ENDINGS)]
        known = [column for column in named if column in likely or not most]
        for candidates in (likely, known, in_full):
            if len(candidates) == 1:
                return candidates[0], False
        shown = join_names(map(repr, likely or table.described()), most=10)
        reason = (
            f"the columns {shown} all name images" if likely else f"none of {shown} names files"
        )
        raise DataError(
            f"{self._name} has no column 'path', and {reason} below "
            f"{printable(self._finder.root)}. Name the column as `path_column`. {EXPECTED}"
        )

    def _find_group_column(self, used: set[str]) -> str | None:
        """Return the column of the groups: the one given, or one that is named like one."""
        table = self._table
        if self._options.group_column is not None:
            return table.find(self._options.group_column, setting="group_column")
        sizes = {
            name: Counter(filter(None, table.cells(name)))
            for name in table.described()
            if name not in used and is_group_name(name)
        }
        likely = {
            name: len(count)
            for name, count in sizes.items()
            if 2 < len(count) < count.total() and 3 * max(count.values()) <= len(table.rows)
        }
        return min(likely, key=lambda name: likely[name], default=None)

    def _check_rows(self, rows: Sequence[_Row]) -> None:
        """Check that the cells are filled in, and the splits' names."""
        faults, name = self._faults, self._name
        empty = {"path": [row.line for row in rows if not row.path]}
        if self._options.task == "multiclass" and len(self._label_columns) == 1:
            empty["label"] = [row.line for row in rows if not row.labels]
        for column, lines in empty.items():
            if lines:
                faults.append(
                    f"{name} has no {column} in {name_lines(lines)}. Fill it in, or write the "
                    f"other rows with doctor's `write_csv`."
                )
        with_split = [row for row in rows if row.split]
        if not with_split:
            return
        if lines := [row.line for row in rows if not row.split]:
            faults.append(
                f"{name} has no split in {name_lines(lines)}. Give every image a split, or none."
            )
        if wrong := [row for row in with_split if row.split not in SPLIT_WORDS.values()]:
            message = unknown_name("split", wrong[0].split, SPLIT_WORDS)
            faults.append(f"{name}, {name_lines(row.line for row in wrong)}: {message}")
        elif "train" not in (row.split for row in with_split):
            faults.append(
                f"{name} has no image in the split train. Add some, or drop the column split and "
                f"use `split`."
            )

    def _merge(self, rows: Sequence[_Row]) -> list[_Row]:
        """Return a row for each file: the first one, and with several labels those of all rows."""
        is_multilabel = self._options.task == "multilabel"
        merged: dict[str, _Row] = {}
        repeated = []
        conflicts: dict[str, list[tuple[_Row, _Row]]] = defaultdict(list)
        for row in rows:
            key = os.path.normpath(self._finder.full_path(row.path))
            first = merged.setdefault(key, row)
            if first is row:
                continue
            repeated.append(row.line)
            if is_multilabel:
                merged[key] = first._replace(labels=(*first.labels, *row.labels))
            elif first.labels != row.labels:
                conflicts["label"].append((first, row))
            if first.split != row.split:
                conflicts["split"].append((first, row))
        for kind, pairs in conflicts.items():
            self._refuse_conflict(kind, pairs)
        if repeated:
            what = "Joined the labels of" if is_multilabel else "Ignored"
            self._notes.append(
                f"{what} {len(repeated):,} row{'s' * (len(repeated) > 1)} with an image of an "
                f"earlier row ({name_lines(repeated)})."
            )
        return list(merged.values())

    def _refuse_conflict(self, kind: str, pairs: Sequence[tuple[_Row, _Row]]) -> None:
        first, row = pairs[0]
        values = [r.split if kind == "split" else ", ".join(r.labels) for r in (first, row)]
        more = f" {len(pairs) - 1:,} more such rows follow." if len(pairs) > 1 else ""
        several = " For several labels per image set `task` multilabel." if kind == "label" else ""
        self._faults.append(
            f"{self._name} lists {row.path!r} twice with different {kind}s: {values[0]!r} in line "
            f"{first.line}, {values[1]!r} in line {row.line}.{more} Keep one.{several}"
        )

    def _refuse_missing(self, missing: Sequence[_Row], total: int) -> None:
        some = join_names((f"{row.path!r} (line {row.line})" for row in missing), most=3)
        rest = ""
        if len(missing) < total:
            rest = " To go on without them, write the rest with doctor's `write_csv`."
        self._faults.append(
            f"{len(missing):,} of {total:,} images in {self._name} do not exist: {some}. Paths are "
            f"absolute or relative to {printable(self._finder.root)}.{rest}"
        )

    def _find_classes(self, rows: Sequence[_Row]) -> tuple[str, ...]:
        """Return the classes, and point out labels that are not meant as classes."""
        labels = [label for row in rows for label in row.labels]
        class_names = tuple(sorted({*labels}))
        if len(class_names) < 2 and (rows or not self._faults):
            only = f"only one class, {class_names[0]!r}" if class_names else "no labels"
            self._faults.append(f"{self._name} has {only}; training needs at least 2.")
        if self._options.task == "multilabel" or self._finder.exact:
            return class_names
        if (text := describe_combinations(labels)) is not None:
            self._observations.append(Observation("combined_labels", text))
            return class_names
        fault, question = describe_measurements(labels)
        self._faults += filter(None, [fault])
        if question is not None:
            self._observations.append(Observation("measurements", question))
        return class_names


def _find_root(path: Path) -> tuple[Path, dict[str, Any] | None]:
    """Return the folder that relative paths start from, and the settings of the run that wrote it.

    The settings are None if it is not the `splits.csv` of a run.
    """
    if path.name != "splits.csv":
        return path.parent, None
    try:
        run = json.loads(path.with_name("config.json").read_text("utf-8"))
        dataset = Path(run["dataset"])
        is_folder, exists = dataset.is_dir(), dataset.exists()
    except (OSError, ValueError, KeyError, TypeError):
        return path.parent, None
    if not exists:
        raise DataError(
            f"{printable(path)} belongs to a run on {str(dataset)!r}, which is not an existing "
            f"folder or CSV. Give that dataset instead."
        )
    return dataset if is_folder else dataset.parent, run
