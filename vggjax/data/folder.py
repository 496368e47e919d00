"""Opens a folder of pictures: `root/<class>/**`, or `root/{train,validation,test}/<class>/**`.

The scan is sorted and opens no picture; a picture is told by its ending. Classes are numbered in
the sorted order of their names, as Keras numbers them (as strings: "1", "10", "2"). Pictures in
folders inside a class folder belong to the class. Hidden files, `__MACOSX` and what is no picture
(`Thumbs.db`, read-me files) are passed over, and so are pictures that lie beside class folders.
"""

import difflib
import os
from pathlib import Path

import numpy as np

from vggjax.data.pictures import ENDINGS, read_picture
from vggjax.data.source import Source, fingerprint
from vggjax.errors import DataError, shown

SPLIT_FOLDERS = {
    "train": "train",
    "validation": "val",
    "val": "val",
    "valid": "val",
    "test": "test",
}
"""Folder name, in lower case -> split."""

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
        siblings = _folders(path.parent)
    except DataError:
        return []
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.6)
    return [str(path.with_name(name)) for name in near]


def open_folder(folder: str | os.PathLike[str]) -> Source:
    """Scans a folder of pictures; reads none of them yet.

    Raises:
        DataError: no such folder, or no two classes with pictures in it.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(_describe_missing(root))
    names = _folders(root)
    split_of = {name: SPLIT_FOLDERS.get(name.lower()) for name in names}
    found = [split for split in split_of.values() if split]
    if "train" in found and len(found) > 1 and len(found) < len(names):
        others = ", ".join(repr(name) for name in names if not split_of[name])
        raise DataError(
            f"{shown(root)} has split folders and others beside them: {others}. Take these out, "
            f"or give one of the folders alone."
        )
    if found and len(found) == len(names):
        return _open_splits(root, {name: split for name, split in split_of.items() if split})
    classes = _scan_classes(root, "")
    return _make_source(root, tuple(classes), {"": classes})


def _open_splits(root: Path, split_of: dict[str, str]) -> Source:
    if len(set(split_of.values())) < len(split_of):
        raise DataError(
            f"{shown(root)} has two folders for one split: {', '.join(split_of)}. Keep one."
        )
    if "train" not in split_of.values():
        raise DataError(
            f"{shown(root)} has {', '.join(split_of)} but no train folder. {_LAYOUT} To cut one "
            f"set of pictures by --split, give the folder that holds the class folders."
        )
    name_of = {split: name for name, split in split_of.items()}
    scanned = {
        split: _scan_classes(root, name_of[split])
        for split in ("train", "val", "test")
        if split in name_of
    }
    class_names = tuple(scanned["train"])
    for split, classes in scanned.items():
        if extra := [name for name in classes if name not in scanned["train"]]:
            raise DataError(
                f"The {split} folder of {shown(root)} has classes that train lacks: "
                f"{_listed(extra)}. Train has {_listed(class_names)}."
            )
    return _make_source(root, class_names, scanned)


def _make_source(
    root: Path, class_names: tuple[str, ...], scanned: dict[str, dict[str, _Files]]
) -> Source:
    if len(class_names) < 2:
        raise DataError(
            f"{shown(root)} has only one class, {class_names[0]!r}; a classifier needs two "
            f"or more. {_LAYOUT}"
        )
    ids, sizes, labels, parts = [], [], [], {}
    number = {name: i for i, name in enumerate(class_names)}
    for split, classes in scanned.items():
        start = len(ids)
        for class_name, files in classes.items():
            for path, size in files:
                ids.append(path)
                sizes.append(size)
            labels += [number[class_name]] * len(files)
        parts[split] = np.arange(start, len(ids))
    splits = None if "" in parts else parts
    labels = np.asarray(labels, np.int32)
    return Source(
        name=root.resolve().name,
        class_names=class_names,
        labels=labels,
        ids=ids,
        splits=splits,
        read=lambda i: read_picture(root / ids[i]),
        fingerprint=fingerprint(class_names, ids, labels, splits, sizes),
        root=root,
    )


def _scan_classes(root: Path, below: str) -> dict[str, _Files]:
    top = root / below
    names = _folders(top)
    classes = {name: _scan_files(top, name, f"{below}/{name}" if below else name) for name in names}
    if not names:
        with _scandir(top) as entries:
            pictures = any(entry.name.lower().endswith(ENDINGS) for entry in entries)
        if pictures:
            raise DataError(f"{shown(top)} has pictures but no class folders. {_LAYOUT}")
        raise DataError(f"{shown(top)} has no class folders in it. {_LAYOUT}")
    if empty := [name for name, files in classes.items() if not files]:
        raise DataError(
            f"{shown(top)} has class folders without pictures: {_listed(empty)}. Fill them or "
            f"delete them. Pictures are {' '.join(ENDINGS)}."
        )
    return classes


def _scan_files(top: Path, class_name: str, prefix: str) -> _Files:
    """Lists a class' pictures, sorted by path; goes into no folder twice, whatever links to it."""
    files: _Files = []
    status = os.stat(top)
    entered = {(status.st_dev, status.st_ino)}
    pending = [(str(top / class_name), prefix)]
    while pending:
        folder, path = pending.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        with _scandir(folder) as entries:
            for entry in entries:
                if _is_ignored(entry.name):
                    continue
                if entry.is_dir():
                    pending.append((entry.path, f"{path}/{entry.name}"))
                elif entry.name.lower().endswith(ENDINGS):
                    files.append((f"{path}/{entry.name}", _size(entry)))
        pending.sort(reverse=True)  # the same folder first, whatever the order on the disk
    return sorted(files)


def _folders(top: Path) -> list[str]:
    with _scandir(top) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not _is_ignored(e.name))


def _scandir(folder: str | os.PathLike[str]):
    try:
        return os.scandir(folder)
    except OSError as error:
        raise DataError(f"{shown(folder)} cannot be read: {error.strerror}.") from None


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _size(entry: os.DirEntry) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link to nothing: reading the picture will say so
        return -1


def _describe_missing(root: Path) -> str:
    if root.exists():
        return (
            f"{shown(root)} is a file, not a folder. Unpack it if it is an archive, and give the "
            f"folder. {_LAYOUT}"
        )
    near = nearest_folder(root)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"There is no folder '{shown(root)}'.{meant} {_LAYOUT}"


def _listed(names, most: int = 10) -> str:
    text = ", ".join(repr(name) for name in list(names)[:most])
    return text + (f" and {len(names) - most} more" if len(names) > most else "")
