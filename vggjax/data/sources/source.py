"""`Source`, the interface of every dataset, and `Scan`, a dataset together with its errors.

Labels, names and splits are in memory; images are decoded one at a time on request, from any
thread. Opening a dataset by its name is in open.py.
"""

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from vggjax.data.images.decode import DecodedImage, read_image
from vggjax.errors import DataError, join_names, printable

SPLIT_WORDS = {
    "train": "train",
    "validation": "val",
    "val": "val",
    "valid": "val",
    "test": "test",
}
"""Accepted split names, in lower case -> `train`, `val` or `test`."""

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")


@dataclass(frozen=True, eq=False)
class Source:
    """A labeled set of images, of which only the labels are in memory."""

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    """int32 (N,), indices into `class_names`."""
    ids: Sequence[str]
    """(N,), unique: the path below `root` with `/`, the path written in a CSV, or `train/17`, the
    tfds split and the position in it."""
    splits: dict[str, np.ndarray] | None
    """The dataset's official splits: some of `train`, `val` and `test` -> indices; None without."""
    read: Callable[[int], DecodedImage]
    """Index -> the decoded image; raises `DataError` with nothing but the reason."""
    fingerprint: str
    """SHA-256 of class names, ids, labels, splits and sizes; identifies the dataset."""
    root: Path | None = None
    """The folder that holds exactly these images, if there is one."""
    locate: Callable[[int], Path] | None = None
    """Index -> its file; None if examples have no file each."""
    notes: tuple[str, ...] = ()
    """What the user should know before training, one sentence each; none is an error."""

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> Path | None:
        """Return the file of an example; None if examples have no file each."""
        return None if self.locate is None else self.locate(i)


class ImageFile(NamedTuple):
    """A labeled image file."""

    id: str
    label: str
    split: str
    """train, val, test, or empty."""
    size: int
    """In bytes."""


@dataclass(frozen=True, eq=False)
class Scan:
    """The result of scanning a dataset, including its errors; no image was opened."""

    source: Source | None
    """The usable labeled images; None if there are none."""
    faults: tuple[str, ...] = ()
    """Error messages: each is a reason why the dataset cannot be trained on."""
    empty: tuple[str, ...] = ()
    """Class folders without images, below the root."""
    loose: tuple[str, ...] = ()
    """Images next to the class folders, below the root: they have no label."""
    missing: tuple[str, ...] = ()
    """Paths in a CSV that do not exist, as written there."""

    def checked(self) -> Source:
        """Return the dataset.

        Raises:
            DataError: the first of `faults`.
        """
        if self.faults:
            raise DataError(self.faults[0])
        assert self.source is not None
        return self.source


def fingerprint(
    class_names: Iterable[str],
    ids: Iterable[str],
    labels: np.ndarray,
    splits: dict[str, np.ndarray] | None,
    sizes: Iterable[int],
) -> str:
    """Return the SHA-256 of a dataset's contents, independent of its location."""
    digest = hashlib.sha256()
    for part in (class_names, ids, map(str, sizes)):
        text = "\0".join(part)
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0\0")
    digest.update(np.asarray(labels, "<i4").tobytes())
    splits = splits or {}
    for name in sorted(splits):
        digest.update(name.encode() + np.asarray(splits[name], "<i8").tobytes())
    return digest.hexdigest()


def make_file_source(
    name: str,
    class_names: tuple[str, ...],
    files: Sequence[ImageFile],
    *,
    locate: Callable[[str], Path],
    root: Path | None = None,
    notes: Sequence[str] = (),
) -> Source:
    """Return the source of image files; `locate` maps an id to its path."""
    label_of = {class_name: i for i, class_name in enumerate(class_names)}
    labels = np.asarray([label_of[file.label] for file in files], np.int32)
    ids = [file.id for file in files]
    split_of = np.asarray([file.split for file in files], np.str_)
    parts = {split: np.flatnonzero(split_of == split) for split in ("train", "val", "test")}
    splits = {split: part for split, part in parts.items() if len(part)} or None
    return Source(
        name=name,
        class_names=class_names,
        labels=labels,
        ids=ids,
        splits=splits,
        read=lambda i: read_image(locate(ids[i])),
        fingerprint=fingerprint(class_names, ids, labels, splits, [file.size for file in files]),
        root=root,
        locate=lambda i: locate(ids[i]),
        notes=(*class_notes(class_names), *notes),
    )


def class_notes(class_names: Sequence[str]) -> list[str]:
    """Describe numbers sorted as text, and class names that are easily confused."""
    notes = []
    if all(name.isdecimal() for name in class_names):
        if list(class_names) != sorted(class_names, key=int):
            first = join_names(class_names, most=12)
            notes.append(f"Class names are sorted as text, not as numbers: {first}.")
    variants = defaultdict(list)
    for name in class_names:
        variants[unicodedata.normalize("NFKC", name.casefold()).strip()].append(name)
    for names in variants.values():
        if len(names) > 1:
            notes.append(
                f"Classes {join_names(map(repr, names))} differ only in case, surrounding spaces "
                f"or Unicode normalization; each is a class. Merge them if that is not intended."
            )
    return notes


def file_notes(hidden: Sequence[str], loose: Sequence[str], others: Sequence[str]) -> list[str]:
    """Describe what a scan skipped: hidden folders, images without a class, other files."""
    notes = []
    if hidden:
        notes.append(f"Skipped {_count(hidden, 'hidden folder')}: {_first_three(hidden)}.")
    if loose:
        notes.append(
            f"Skipped {_count(loose, 'image')} next to the class folders, without a label: "
            f"{_first_three(loose)}."
        )
    archives = [name for name in others if name.lower().endswith(_ARCHIVES)]
    if archives:
        notes.append(
            f"Skipped {_count(archives, 'archive')}, unpack first: {_first_three(archives)}."
        )
    extensions = Counter(
        PurePosixPath(name).suffix.lower() or "without an extension"
        for name in others
        if not name.lower().endswith(_ARCHIVES)
    )
    if extensions:
        most = sorted(extensions.items(), key=lambda item: (-item[1], item[0]))[:5]
        text = ", ".join(f"{count:,} {printable(extension)}" for extension, count in most)
        notes.append(f"Skipped files without an image's extension: {text}.")
    return notes


def _count(names: Sequence[str], noun: str) -> str:
    return f"{len(names):,} {noun}{'s' * (len(names) != 1)}"


def _first_three(names: Sequence[str]) -> str:
    return join_names(map(repr, names), most=3)
