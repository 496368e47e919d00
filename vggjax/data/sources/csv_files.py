"""Find the files that a table names: as written, spelled a little otherwise, or by their names.

A competition's table has ids without folder and ending, and a table from another machine has that
machine's folders. Where fewer than half of the cells are files as written, the images below the
CSV's folder, or beside it, are listed once and looked up by name; the folders in a cell decide
between several images of one name. What was found in another way than written is said in a note.
"""

import os
import re
import stat
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

from vggjax.data.images.formats import ENDINGS
from vggjax.data.sources.source import SPLIT_WORDS
from vggjax.errors import printable

_MAX_BESIDE = 100_000
"""Files that are listed beside the CSV's folder."""


class FoundFiles(NamedTuple):
    """The files of a table's rows."""

    paths: list[str]
    """(N,): the path of each row's file, below the folder or as written."""
    sizes: list[int | None]
    """(N,): in bytes; None if there is no such file."""
    several: dict[int, list[str]]
    """Row -> the files that its cell may mean."""
    notes: list[str]


class FileFinder:
    """Finds the files that cells name, below the folder of their table."""

    def __init__(self, root: Path, table: str, *, exact: bool = False) -> None:
        """Search below `root`; `exact` takes cells as written only."""
        self.root = root
        self.exact = exact
        words = [SPLIT_WORDS[word] for word in _words(table) if word in SPLIT_WORDS]
        self._split = words[0] if words else "train"  # whose folder is meant, of several

    def locate(self, path: str) -> Path:
        """Return the file of a path that is absolute, below home, or below the folder."""
        return Path(self.full_path(path))

    def full_path(self, path: str) -> str:
        """Return the same as text, which is faster."""
        return os.path.join(self.root, os.path.expanduser(path))

    def size(self, path: str) -> int | None:
        """Return a file's size in bytes; None if there is no such file."""
        try:
            status = os.stat(self.full_path(path))
        except (OSError, ValueError):
            return None
        return None if stat.S_ISDIR(status.st_mode) else status.st_size

    def count(self, cells: Sequence[str]) -> int:
        """Count the cells that name a file, as written or by its name."""
        return sum(bool(cell) and self._is_file(cell) for cell in cells)

    def _is_file(self, cell: str) -> bool:
        return bool(self._lookup(cell)) or self.size(cell) is not None

    def find(self, cells: Sequence[str], column: str) -> FoundFiles:
        """Find the file of each cell of a column."""
        paths, several, notes = list(cells), {}, []
        sizes = [self.size(cell) if cell else None for cell in cells]
        missing = [i for i, size in enumerate(sizes) if size is None and cells[i]]
        if self.exact or not missing:
            return FoundFiles(paths, sizes, {}, [])
        by_name = 2 * len(missing) > len(cells)
        changed = []
        for i in missing:
            matches = self._lookup(cells[i])
            if not by_name:  # only another spelling of the path itself
                spelled = os.path.normpath(cells[i].strip().replace("\\", "/")).lower()
                matches = [path for path in matches if path.lower() == spelled]
            matches = self._prefer_split(matches)
            if len(matches) > 1:
                several[i] = matches
            elif matches:
                paths[i], sizes[i] = matches[0], self.size(matches[0])
                changed.append(i)
        if changed:
            notes = [self._describe(cells, paths, changed, column)]
        return FoundFiles(paths, sizes, several, notes)

    def _describe(
        self, cells: Sequence[str], paths: list[str], changed: list[int], column: str
    ) -> str:
        patterns = {_pattern(cells[i], paths[i]) for i in changed}
        if len(patterns) == 1 and None not in patterns:
            text = f"The column {column!r} names the images {patterns.pop()}"
        else:
            example = f"{cells[changed[0]]!r} is {paths[changed[0]]}"
            text = f"{len(changed):,} images of the column {column!r} were found by name: {example}"
        return f"{printable(text)}, relative to the CSV; `path_column` names another column."

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """File name in lower case, with and without its ending -> paths of images.

        Those of the CSV's folder, or of the folder that it is in (`labels/train.csv`, `images/`).
        """
        return self._list_images(self.root) or self._list_images(self.root.parent, most=_MAX_BESIDE)

    def _list_images(self, top: Path, *, most: int | None = None) -> dict[str, list[str]]:
        """List the images below a folder; none if it has more than `most` files."""
        by_name, count = defaultdict(list), 0
        entered: set[str] = set()
        for folder, folders, names in os.walk(top, followlinks=True):
            count += len(names)
            if most is not None and count > most:
                return {}
            real = os.path.realpath(folder)
            if real in entered:
                folders.clear()
                continue
            entered.add(real)
            folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
            below = PurePath(os.path.relpath(folder, self.root))
            for name in sorted(names):
                if name.lower().endswith(ENDINGS) and not name.startswith("."):
                    path = (below / name).as_posix()
                    by_name[name.lower()].append(path)
                    by_name[PurePosixPath(name).stem.lower()].append(path)
        return by_name

    def _lookup(self, cell: str) -> list[str]:
        """Return the images whose path ends most like the cell's."""
        parts = [part for part in re.split(r"[/\\]", cell.strip()) if part not in ("", ".")]
        *folders, name = parts or [""]
        matches = self._by_name.get(name.lower(), [])
        if not matches and name.lower().endswith(ENDINGS):  # saved in another format
            matches = self._by_name.get(PurePosixPath(name).stem.lower(), [])
        if len(matches) < 2:
            return matches

        def agreement(path: str) -> tuple[int, bool]:
            *parents, file = path.split("/")
            shared = 0
            for one, other in zip(reversed(parents), reversed(folders), strict=False):
                if one.lower() != other.lower():
                    break
                shared += 1
            return shared, name in (file, PurePosixPath(file).stem)

        best = max(map(agreement, matches))
        return [path for path in matches if agreement(path) == best]

    def _prefer_split(self, matches: list[str]) -> list[str]:
        """Choose the one in the folder of the table's split: train, unless its name says else."""
        if len(matches) < 2:
            return matches
        own = [
            path
            for path in matches
            if self._split in (SPLIT_WORDS.get(word) for word in _words(path.split("/")[0]))
        ]
        return own if len(own) == 1 else matches


def _pattern(cell: str, path: str) -> str | None:
    """Return `train/<id>.jpg` for `7` and `train/7.jpg`; None if a path does not hold its cell."""
    start, found, end = path.rpartition(cell)
    return f"{start}<{'name' if '.' in cell else 'id'}>{end}" if found else None


def _words(name: str) -> list[str]:
    """Split a name into lower-case words: `trainLabels.csv` is train, labels and csv."""
    return re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
