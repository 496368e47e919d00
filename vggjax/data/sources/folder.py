"""Scan a folder of images: `root/<class>/**`, or `root/{train,validation,test}/<class>/**`.

The scan is sorted and opens no image; an image is recognized by its extension. Classes are
numbered by their sorted names, as in Keras (as strings: "1", "10", "2"). Images in subfolders of a
class folder belong to the class. Links are followed, but never into an ancestor and never twice
into the same folder. Hidden files, `__MACOSX`, files that are not images and images next to the
class folders are skipped; `Source.notes` mentions those that a user might miss.
"""

import difflib
import heapq
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vggjax.data.images.formats import ENDINGS
from vggjax.data.sources.source import (
    SPLIT_WORDS,
    ImageFile,
    Scan,
    Source,
    file_notes,
    make_file_source,
)
from vggjax.errors import DataError, join_names, printable

_LAYOUT = "Expected FOLDER/<class>/*.jpg, or FOLDER/{train,validation,test}/<class>/*.jpg."

_Files = list[tuple[str, int]]
"""Paths below the root, with `/`, and sizes in bytes."""


def looks_like_path(dataset: str) -> bool:
    """Return whether a name is a path, existing or not, rather than a tfds name."""
    return dataset.startswith((".", "~", "/", os.sep)) or "\\" in dataset


def nearest_folder(folder: str | os.PathLike[str]) -> list[str]:
    """Return the sibling of a missing folder with the most similar name; none or one."""
    path = Path(folder)
    try:
        siblings = _list_folder(path.parent)[0]
    except DataError:
        return []
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.6)
    return [str(path.with_name(name)) for name in near]


def scan_folder(folder: str | os.PathLike[str]) -> Scan:
    """Scan a folder of images, collecting its errors.

    Raises:
        DataError: there is no such folder, or it cannot be listed.
    """
    root = Path(folder).expanduser()
    if root.is_dir():
        return _Scanner(root).scan()
    if root.exists():
        raise DataError(
            f"{printable(root)} is a file, not a folder. If it is an archive, unpack it and give "
            f"the folder. {_LAYOUT}"
        )
    near = nearest_folder(root)
    suggestion = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(f"There is no folder '{printable(root)}'.{suggestion} {_LAYOUT}")


class _Scanner:
    """One scan of a folder; collects errors and skipped files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: list[str] = []
        self.empty: list[str] = []
        self.loose: list[str] = []
        self.others: list[str] = []
        self.hidden: list[str] = []

    def scan(self) -> Scan:
        split_folders = self._find_splits(_list_folder(self.root)[0])
        if not split_folders:
            parts = [("", self._scan_classes(""))]
        else:
            self._list_top("")
            parts = [(split, self._scan_classes(name)) for name, split in split_folders]
            self._compare_splits(parts)
        for paths in (self.hidden, self.loose, self.others):
            paths.sort()  # the disk's order is arbitrary
        filled = sorted({name for _, classes in parts for name, files in classes.items() if files})
        if len(filled) == 1 and not self.faults:
            self._add_single_class(filled[0])
        return Scan(
            source=self._make_source(parts) if filled else None,
            faults=tuple(self.faults),
            empty=tuple(self.empty),
            loose=tuple(self.loose),
        )

    def _find_splits(self, names: list[str]) -> list[tuple[str, str]]:
        """Return (folder, split) of the split folders, train first; none if all are classes."""
        splits = {name: SPLIT_WORDS[name.lower()] for name in names if name.lower() in SPLIT_WORDS}
        words = list(splits.values())
        root = printable(self.root)
        if "train" in words and 1 < len(splits) < len(names):
            others = _quoted(name for name in names if name not in splits)
            self.faults.append(
                f"{root} has other folders next to its split folders: {others}. Remove them, or "
                f"give one of the folders alone."
            )
        elif len(splits) < len(names):
            return []
        if len(set(words)) < len(words):
            self.faults.append(f"{root} has two folders for one split: {', '.join(names)}.")
        if splits and "train" not in words:
            self.faults.append(
                f"{root} has {', '.join(names)} but no train folder. {_LAYOUT} To split one set of "
                f"images by `split`, give the folder that contains the class folders."
            )
        order = ("train", "val", "test")
        return sorted(splits.items(), key=lambda item: order.index(item[1]))

    def _compare_splits(self, parts: list[tuple[str, dict[str, _Files]]]) -> None:
        train = [name for split, classes in parts for name in classes if split == "train"]
        for split, classes in parts:
            extra = [name for name in classes if name not in train]
            if extra and train and split != "train":
                self.faults.append(
                    f"The {split} folder of {printable(self.root)} has classes that train lacks: "
                    f"{_quoted(extra)}. Train has {_quoted(train)}."
                )

    def _add_single_class(self, name: str) -> None:
        inside = self.root / name
        is_wrapper = inside.is_dir() and len(_list_folder(inside)[0]) > 1  # an archive's top folder
        suggestion = f" Did you mean {printable(inside)!r}?" if is_wrapper else ""
        self.faults.append(
            f"{printable(self.root)} has only one class, {name!r}; training needs at least 2."
            f"{suggestion} {_LAYOUT}"
        )

    def _scan_classes(self, below: str) -> dict[str, _Files]:
        top = self.root / below
        names, images = self._list_top(below)
        if not names:
            content = "images but no class folders" if images else "no class folders"
            self.faults.append(f"{printable(top)} has {content}. {_LAYOUT}")
        classes = {name: self._scan_files(top, name, _join(below, name)) for name in names}
        if empty := [name for name, files in classes.items() if not files]:
            self.empty += [_join(below, name) for name in empty]
            self.faults.append(
                f"{printable(top)} has class folders without images: {_quoted(empty)}. Fill or "
                f"delete them. Images are {' '.join(ENDINGS)}."
            )
        return classes

    def _list_top(self, below: str) -> tuple[list[str], list[str]]:
        """Return the folders and images directly below; record what is skipped there."""
        folders, files, hidden = _list_folder(self.root / below)
        images = [name for name in files if _is_image(name)]
        others = [name for name in files if not _is_image(name) and not _is_clutter(name)]
        for paths, names in ((self.hidden, hidden), (self.loose, images), (self.others, others)):
            paths += [_join(below, name) for name in names]
        return folders, images

    def _scan_files(self, top: Path, class_name: str, prefix: str) -> _Files:
        """Return a class's images, sorted by path; no folder is entered twice."""
        files: _Files = []
        entered = {_identity(folder) for folder in (top.resolve(), *top.resolve().parents)}
        pending = [(str(top / class_name), prefix)]
        while pending:
            folder, path = heapq.heappop(pending)  # independent of the disk's order
            if (identity := _identity(folder)) in entered:
                continue
            entered.add(identity)
            with _scandir(folder) as entries:
                for entry in entries:
                    if _is_ignored(entry.name):
                        continue
                    if _is_folder(entry):
                        heapq.heappush(pending, (entry.path, f"{path}/{entry.name}"))
                    elif _is_image(entry.name):
                        files.append((f"{path}/{entry.name}", _size(entry)))
                    elif not _is_clutter(entry.name):
                        self.others.append(f"{path}/{entry.name}")
        return sorted(files)

    def _make_source(self, parts: list[tuple[str, dict[str, _Files]]]) -> Source:
        class_names = tuple(sorted({name for _, classes in parts for name in classes}))
        files = [
            ImageFile(path, label, split, size)
            for split, classes in parts
            for label, paths in classes.items()
            for path, size in paths
        ]
        return make_file_source(
            self.root.resolve().name,
            class_names,
            files,
            locate=lambda image_id: self.root / image_id,
            root=self.root,
            notes=file_notes(self.hidden, self.loose, self.others),
        )


def _list_folder(top: Path) -> tuple[list[str], list[str], list[str]]:
    """Return the folders, files and hidden folders, each sorted; `__MACOSX` is left out."""
    folders: list[str] = []
    files: list[str] = []
    hidden: list[str] = []
    with _scandir(top) as entries:
        for entry in entries:
            is_folder = _is_folder(entry)
            if not _is_ignored(entry.name):
                (folders if is_folder else files).append(entry.name)
            elif is_folder and entry.name.startswith("."):
                hidden.append(entry.name)
    return sorted(folders), sorted(files), sorted(hidden)


@contextmanager
def _scandir(folder: str | os.PathLike[str]) -> Iterator[Iterable[os.DirEntry[str]]]:
    try:
        entries = os.scandir(folder)
    except OSError as error:
        raise DataError(f"{printable(folder)} cannot be read: {error.strerror}.") from None
    with entries:
        yield entries


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # e.g. a link to itself: reading it as an image gives the reason
        return False


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_clutter(name: str) -> bool:
    """Return whether a file browser created the file."""
    return name.lower() in ("thumbs.db", "desktop.ini", "icon\r")


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a dangling link: reading it as an image gives the reason
        return -1


def _join(below: str, name: str) -> str:
    return f"{below}/{name}" if below else name


def _quoted(names: Iterable[str]) -> str:
    return join_names(map(repr, names), most=10)
