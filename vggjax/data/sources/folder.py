"""Scan a folder of images: `root/<class>/**`, or `root/{train,validation,test}/<class>/**`.

The scan is sorted and opens no image; an image is recognized by its extension. Classes are
numbered by their sorted names, as in Keras (as strings: "1", "10", "2"). Images in subfolders of a
class folder belong to the class. Links are followed, but never into an ancestor and never twice
into the same folder. Hidden files, `__MACOSX`, files that are not images and images next to the
class folders are skipped; `Source.notes` mentions those that a user might miss.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from vggjax.data.images.formats import ENDINGS
from vggjax.data.sources.source import (
    SPLIT_WORDS,
    ImageFile,
    Scan,
    make_file_source,
    nearest_path,
)
from vggjax.errors import DataError, join_names, printable

_LAYOUT = "Expected FOLDER/<class>/*.jpg, or FOLDER/{train,validation,test}/<class>/*.jpg."
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")


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
    near = nearest_path(root, Path.is_dir)
    suggestion = f" Did you mean {near!r}?" if near else ""
    raise DataError(f"There is no folder '{printable(root)}'.{suggestion} {_LAYOUT}")


class _Scanner:
    """One scan of a folder; collects images, errors and skipped files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: list[ImageFile] = []
        self.faults: list[str] = []
        self.empty: list[str] = []
        self.loose: list[str] = []
        self.others: list[str] = []
        self.hidden: list[str] = []

    def scan(self) -> Scan:
        split_folders = self._find_splits()
        if split_folders:
            self._list_top("")
        parts = [
            (split, self._scan_classes(folder, split))
            for folder, split in split_folders or [("", "")]
        ]
        self._compare_splits(parts)
        for paths in (self.hidden, self.loose, self.others):
            paths.sort()  # the disk's order is arbitrary
        filled = {file.label for file in self.files}
        if len(filled) == 1 and not self.faults:
            self._add_single_class(*filled)
        class_names = tuple(sorted({name for _, names in parts for name in names}))
        return Scan(
            source=make_file_source(
                self.root.resolve().name,
                class_names,
                self.files,
                locate=lambda image_id: self.root / image_id,
                root=self.root,
                notes=self._notes(),
            )
            if filled
            else None,
            faults=tuple(self.faults),
            empty=tuple(self.empty),
            loose=tuple(self.loose),
        )

    def _find_splits(self) -> list[tuple[str, str]]:
        """Return (folder, split) of the split folders, train first; none if all are classes."""
        names = _visible(_list_folder(self.root)[0])
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

    def _compare_splits(self, parts: list[tuple[str, list[str]]]) -> None:
        train = [name for split, names in parts for name in names if split == "train"]
        for split, names in parts:
            extra = [name for name in names if name not in train]
            if extra and train:
                self.faults.append(
                    f"The {split} folder of {printable(self.root)} has classes that train lacks: "
                    f"{_quoted(extra)}. Train has {_quoted(train)}."
                )

    def _add_single_class(self, name: str) -> None:
        inside = self.root / name
        # The top folder of an unpacked archive?
        is_wrapper = inside.is_dir() and len(_visible(_list_folder(inside)[0])) > 1
        suggestion = f" Did you mean {printable(inside)!r}?" if is_wrapper else ""
        self.faults.append(
            f"{printable(self.root)} has only one class, {name!r}; training needs at least 2."
            f"{suggestion} {_LAYOUT}"
        )

    def _scan_classes(self, below: str, split: str) -> list[str]:
        """Collect the images of all class folders directly below; return the classes' names."""
        top = printable(self.root / below)
        names, has_images = self._list_top(below)
        if not names:
            content = "images but no class folders" if has_images else "no class folders"
            self.faults.append(f"{top} has {content}. {_LAYOUT}")
        if empty := [name for name in names if not self._scan_class(below, name, split)]:
            self.empty += [_join(below, name) for name in empty]
            self.faults.append(
                f"{top} has class folders without images: {_quoted(empty)}. Fill or delete them. "
                f"Images are {' '.join(ENDINGS)}."
            )
        return names

    def _list_top(self, below: str) -> tuple[list[str], bool]:
        """Return the folders directly below, and whether images are next to them."""
        folders, files = _list_folder(self.root / below)
        self.hidden += [_join(below, name) for name in folders if name.startswith(".")]
        images, others = _sorted_out(files)
        self.loose += [_join(below, name) for name in images]
        self.others += [_join(below, name) for name in others]
        return _visible(folders), bool(images)

    def _scan_class(self, below: str, class_name: str, split: str) -> bool:
        """Collect a class's images, sorted by path, and return whether there are any."""
        top = self.root / below
        files: list[ImageFile] = []
        entered = {str(folder) for folder in (top.resolve(), *top.resolve().parents)}
        for folder, folders, names in _walk(top / class_name):
            real = os.path.realpath(folder)
            if real in entered:
                folders.clear()
                continue
            entered.add(real)
            folders[:] = _visible(sorted(folders))  # os.walk enters these, in this order
            path = Path(folder).relative_to(self.root).as_posix()
            images, others = _sorted_out(names)
            self.others += [f"{path}/{name}" for name in others]
            files += [
                ImageFile(f"{path}/{name}", class_name, split, _size(os.path.join(folder, name)))
                for name in images
            ]
        self.files += sorted(files)
        return bool(files)

    def _notes(self) -> list[str]:
        archives = [name for name in self.others if name.lower().endswith(_ARCHIVES)]
        notes = [
            f"Skipped {len(names):,} {noun}{'s' * (len(names) > 1)}{remark}: "
            f"{join_names(map(repr, names), most=3)}."
            for names, noun, remark in (
                (self.hidden, "hidden folder", ""),
                (self.loose, "image", " next to the class folders, without a label"),
                (archives, "archive", ", unpack first"),
            )
            if names
        ]
        extensions = Counter(
            PurePosixPath(name).suffix.lower() or "without an extension"
            for name in self.others
            if not name.lower().endswith(_ARCHIVES)
        )
        if extensions:
            most = sorted(extensions.items(), key=lambda item: (-item[1], item[0]))[:5]
            text = ", ".join(f"{count:,} {printable(extension)}" for extension, count in most)
            notes.append(f"Skipped files without an image's extension: {text}.")
        return notes


def _walk(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a folder as os.walk does, links included; a folder that cannot be listed is an error."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{printable(error.filename)} cannot be read: {error.strerror}.") from None

    return os.walk(top, onerror=refuse, followlinks=True)


def _list_folder(top: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files directly below, each sorted."""
    _, folders, files = next(_walk(top))
    return sorted(folders), sorted(files)


def _visible(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(".") and name != "__MACOSX"]


def _sorted_out(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the images and the other files, without hidden ones and those of file browsers."""
    names = _visible(names)
    images = [name for name in names if name.lower().endswith(ENDINGS)]
    skipped = (*ENDINGS, "/thumbs.db", "/desktop.ini", "/icon\r")
    return images, [name for name in names if not f"/{name.lower()}".endswith(skipped)]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a dangling link: reading it as an image gives the reason
        return -1


def _join(below: str, name: str) -> str:
    return f"{below}/{name}" if below else name


def _quoted(names: Iterable[str]) -> str:
    return join_names(map(repr, names), most=10)
