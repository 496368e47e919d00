"""Scans a folder of images: `root/<class>/**`, or `root/{train,validation,test}/<class>/**`.

The scan is sorted and opens no image; an image is told by its ending. Classes are numbered in
the sorted order of their names, as Keras numbers them (as strings: "1", "10", "2"). Images in
folders inside a class folder belong to the class; a link is followed, but never into a folder that
it lies in, and into no folder twice. Hidden files, `__MACOSX` and what is no image are passed
over, and so are images that lie beside class folders: `Source.notes` says so (remarks.py).
"""

import difflib
import heapq
import os
from pathlib import Path

import numpy as np

from vggjax.data.images.decode import read_image
from vggjax.data.images.formats import ENDINGS
from vggjax.data.sources.remarks import join_names, remarks_on_classes, remarks_on_files
from vggjax.data.sources.source import SPLIT_WORDS, Scan, Source, fingerprint
from vggjax.errors import DataError, printable

_LAYOUT = "Expected FOLDER/<class>/*.jpg, or FOLDER/{train,validation,test}/<class>/*.jpg."

_Files = list[tuple[str, int]]
"""Paths below the root, with `/`, and sizes in bytes."""


def looks_like_path(dataset: str) -> bool:
    """Tells a folder's name, existing or not, from a tfds name such as `name/config:1.0.0`."""
    return dataset.startswith((".", "~", "/", os.sep)) or "\\" in dataset


def nearest_folder(folder: str | os.PathLike[str]) -> list[str]:
    """Finds the folder beside a missing one whose name is most like its own; none or one."""
    path = Path(folder)
    try:
        siblings = _list_folder(path.parent)[0]
    except DataError:
        return []
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.6)
    return [str(path.with_name(name)) for name in near]


def open_folder(folder: str | os.PathLike[str]) -> Source:
    """Scans a folder of images; reads none of them yet.

    Raises:
        DataError: no such folder, or no two classes with images in it.
    """
    return scan_folder(folder).checked()


def scan_folder(folder: str | os.PathLike[str]) -> Scan:
    """Finds what lies in a folder of images, whatever is wrong with it.

    Raises:
        DataError: no such folder, or one that cannot be listed.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(_describe_missing(root))
    return _Scanner(root).scan()


class _Scanner:
    """One scan; what it comes across is gathered here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: list[str] = []
        self.empty: list[str] = []
        self.loose: list[str] = []
        self.others: list[str] = []
        self.hidden: list[str] = []

    def scan(self) -> Scan:
        names = _list_folder(self.root)[0]
        tops = self._find_splits(names)
        if not tops:
            parts = [("", self._scan_classes(""))]
        else:
            self._list_top("")
            parts = [(split, self._scan_classes(name)) for name, split in tops]
            self._compare_splits(parts)
        for found in (self.hidden, self.loose, self.others):
            found.sort()  # not in the order of the disk
        filled = sorted({name for _, classes in parts for name, files in classes.items() if files})
        if len(filled) == 1 and not self.faults:
            inside = self.root / filled[0]
            deeper = inside.is_dir() and len(_list_folder(inside)[0]) > 1  # an archive's own folder
            meant = f" Did you mean {printable(inside)!r}?" if deeper else ""
            self.faults.append(
                f"{printable(self.root)} has only one class, {filled[0]!r}; a classifier needs two "
                f"or more.{meant} {_LAYOUT}"
            )
        return Scan(
            source=self._make_source(parts) if filled else None,
            faults=tuple(self.faults),
            empty=tuple(self.empty),
            loose=tuple(self.loose),
            others=tuple(self.others),
        )

    def _find_splits(self, names: list[str]) -> list[tuple[str, str]]:
        """Gives the split folders and their splits, train first; none where all are classes."""
        split_of = {name: SPLIT_WORDS.get(name.lower()) for name in names}
        order = ("train", "val", "test")
        found = sorted(
            ((name, split) for name, split in split_of.items() if split),
            key=lambda pair: order.index(pair[1]),
        )
        splits = [split for _, split in found]
        here = printable(self.root)
        if "train" in splits and 1 < len(found) < len(names):
            others = join_names([name for name in names if not split_of[name]])
            self.faults.append(
                f"{here} has split folders and others beside them: {others}. Take these out, "
                f"or give one of the folders alone."
            )
        elif len(found) < len(names):
            return []
        if len(set(splits)) < len(splits):
            self.faults.append(
                f"{here} has two folders for one split: {', '.join(names)}. Keep one."
            )
        if found and "train" not in splits:
            self.faults.append(
                f"{here} has {', '.join(names)} but no train folder. {_LAYOUT} To cut one "
                f"set of images by --split, give the folder that holds the class folders."
            )
        return found

    def _compare_splits(self, parts: list[tuple[str, dict[str, _Files]]]) -> None:
        train = [name for split, classes in parts for name in classes if split == "train"]
        for split, classes in parts:
            extra = [name for name in classes if name not in train]
            if extra and train and split != "train":
                self.faults.append(
                    f"The {split} folder of {printable(self.root)} has classes that train lacks: "
                    f"{join_names(extra)}. Train has {join_names(train)}."
                )

    def _scan_classes(self, below: str) -> dict[str, _Files]:
        top = self.root / below
        names, images = self._list_top(below)
        if not names:
            self.faults.append(
                f"{printable(top)} has images but no class folders. {_LAYOUT}"
                if images
                else f"{printable(top)} has no class folders in it. {_LAYOUT}"
            )
        classes = {name: self._scan_files(top, name, _join(below, name)) for name in names}
        if empty := [name for name, files in classes.items() if not files]:
            self.empty += [_join(below, name) for name in empty]
            self.faults.append(
                f"{printable(top)} has class folders without images: {join_names(empty)}. Fill them or "
                f"delete them. Images are {' '.join(ENDINGS)}."
            )
        return classes

    def _list_top(self, below: str) -> tuple[list[str], list[str]]:
        """Gives the folders and the images right below; notes what is passed over there."""
        folders, files, hidden = _list_folder(self.root / below)
        images = [name for name in files if name.lower().endswith(ENDINGS)]
        self.hidden += [_join(below, name) for name in hidden]
        self.loose += [_join(below, name) for name in images]
        self.others += [
            _join(below, name)
            for name in files
            if not name.lower().endswith(ENDINGS) and not _is_clutter(name)
        ]
        return folders, images

    def _scan_files(self, top: Path, class_name: str, prefix: str) -> _Files:
        """Lists a class' images, sorted by path; goes into no folder twice, whatever links."""
        files: _Files = []
        entered = _identities_above(top)
        pending = [(str(top / class_name), prefix)]
        while pending:
            folder, path = heapq.heappop(pending)  # in one order, whatever that on the disk
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with _scandir(folder) as entries:
                for entry in entries:
                    if _is_ignored(entry.name):
                        continue
                    if _is_folder(entry):
                        heapq.heappush(pending, (entry.path, f"{path}/{entry.name}"))
                    elif entry.name.lower().endswith(ENDINGS):
                        files.append((f"{path}/{entry.name}", _size(entry)))
                    elif not _is_clutter(entry.name):
                        self.others.append(f"{path}/{entry.name}")
        return sorted(files)

    def _make_source(self, parts: list[tuple[str, dict[str, _Files]]]) -> Source:
        root = self.root
        class_names = tuple(sorted({name for _, classes in parts for name in classes}))
        number = {name: i for i, name in enumerate(class_names)}
        ids, sizes, labels, splits = [], [], [], {}
        for split, classes in parts:
            start = len(ids)
            for class_name, files in classes.items():
                ids += [path for path, _ in files]
                sizes += [size for _, size in files]
                labels += [number[class_name]] * len(files)
            before = splits.get(split, np.arange(0))
            splits[split] = np.concatenate([before, np.arange(start, len(ids))])
        own = None if "" in splits else splits
        labels = np.asarray(labels, np.int32)
        return Source(
            name=root.resolve().name,
            class_names=class_names,
            labels=labels,
            ids=ids,
            splits=own,
            read=lambda i: read_image(root / ids[i]),
            fingerprint=fingerprint(class_names, ids, labels, own, sizes),
            root=root,
            notes=(
                *remarks_on_classes(class_names),
                *remarks_on_files(self.hidden, self.loose, self.others),
            ),
        )


def _list_folder(top: Path) -> tuple[list[str], list[str], list[str]]:
    """Gives folders, files and hidden folders, each sorted; `__MACOSX` is in none of them."""
    folders, files, hidden = [], [], []
    with _scandir(top) as entries:
        for entry in entries:
            is_folder = _is_folder(entry)
            if not _is_ignored(entry.name):
                (folders if is_folder else files).append(entry.name)
            elif is_folder and entry.name.startswith("."):
                hidden.append(entry.name)
    return sorted(folders), sorted(files), sorted(hidden)


def _identities_above(top: Path) -> set[tuple[int, int]]:
    """Gives (device, inode) of a folder and of all that it lies in: a link there is a loop."""
    found = set()
    for folder in (top.resolve(), *top.resolve().parents):
        status = os.stat(folder)
        found.add((status.st_dev, status.st_ino))
    return found


def _scandir(folder: str | os.PathLike[str]):
    try:
        return os.scandir(folder)
    except OSError as error:
        raise DataError(f"{printable(folder)} cannot be read: {error.strerror}.") from None


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, among others: reading the image will say so
        return False


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_clutter(name: str) -> bool:
    """Tells what a file browser leaves behind, which nobody misses."""
    return name.lower() in ("thumbs.db", "desktop.ini", "icon\r")


def _size(entry: os.DirEntry) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link to nothing: reading the image will say so
        return -1


def _join(below: str, name: str) -> str:
    return f"{below}/{name}" if below else name


def _describe_missing(root: Path) -> str:
    if root.exists():
        return (
            f"{printable(root)} is a file, not a folder. Unpack it if it is an archive, and give the "
            f"folder. {_LAYOUT}"
        )
    near = nearest_folder(root)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"There is no folder '{printable(root)}'.{meant} {_LAYOUT}"
