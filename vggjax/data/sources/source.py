"""`Source`, the interface of every dataset, and `Scan`, a dataset together with its errors.

Labels, names and splits are in memory; images are decoded one at a time on request, from any
thread. Opening a dataset by its name is in open.py.
"""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggjax.data.images.decode import DecodedImage, read_image
from vggjax.errors import join_names, nearest_name

SPLIT_WORDS = {"train": "train", "validation": "val", "val": "val", "valid": "val", "test": "test"}
"""Accepted split names, in lower case -> `train`, `val` or `test`."""


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
    path: Callable[[int], Path | None] = lambda i: None
    """Index -> its file; None if examples have no file each."""
    notes: tuple[str, ...] = ()
    """What the user should know before training, one sentence each; none is an error."""

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def split_of(self) -> np.ndarray:
        """Return each image's official split, str (N,); "" without one."""
        names = np.full(len(self), "", "<U5")
        for name, indices in (self.splits or {}).items():
            names[indices] = name
        return names


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
        digest.update("\0".join(part).encode("utf-8", "surrogateescape") + b"\0\0")
    digest.update(np.asarray(labels, "<i4").tobytes())
    for name, indices in sorted((splits or {}).items()):
        digest.update(name.encode() + np.asarray(indices, "<i8").tobytes())
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
        path=lambda i: locate(ids[i]),
        notes=(*_class_notes(class_names), *notes),
    )


def nearest_path(path: Path, is_candidate: Callable[[Path], bool]) -> str | None:
    """Return the sibling of a missing path with the most similar name; None without one."""
    try:
        names = [sibling.name for sibling in path.parent.iterdir() if is_candidate(sibling)]
    except OSError:
        return None
    near = nearest_name(path.name, names, cutoff=0.6)
    return str(path.with_name(near)) if near else None


def _class_notes(class_names: Sequence[str]) -> list[str]:
    """Describe numbers sorted as text, and class names that are easily confused."""
    notes = []
    are_numbers = all(name.isdecimal() for name in class_names)
    if are_numbers and list(class_names) != sorted(class_names, key=int):
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
