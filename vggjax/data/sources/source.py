"""`Source`, the interface of every dataset, and `Scan`, a dataset together with its errors.

Labels, names and splits are in memory; images are decoded one at a time on request, from any
thread. Opening a dataset by its name is in open.py.
"""

import dataclasses
import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggjax.data.images.decode import DecodedImage, Rendering, read_image
from vggjax.data.multilabel import join_labels, number_combinations, stratification_labels
from vggjax.errors import join_names, nearest_name

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "evaluation", "eval"), "test"),
}
"""Accepted split names, in lower case -> `train`, `val` or `test`."""


_NO_LABEL = {"-1", "-1.0", "nan", "null", "?", "n/a", "unlabeled", "unlabelled", "no label"}
"""What tables write where a label is not known, in lower case."""


@dataclass(frozen=True, eq=False)
class Source:
    """A labeled set of images, of which only the labels are in memory."""

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    """int32 (N,), indices into `class_names`; with `targets`, the number of each image's
    combination of labels, which is no class (see `label_text` and `class_counts`)."""
    ids: Sequence[str]
    """(N,), unique: the path below `root` with `/`, the path written in a CSV, or `train/17`, the
    tfds split and the position in it."""
    splits: dict[str, np.ndarray] | None
    """The dataset's official splits: some of `train`, `val` and `test` -> indices; None without."""
    read: Callable[[int], DecodedImage]
    """Index -> the decoded image; raises `DataError` with nothing but the reason."""
    fingerprint: str
    """SHA-256 of class names, ids, labels, splits and sizes; identifies the dataset."""
    groups: np.ndarray | None = None
    """int64 (N,): images with the same number (of one patient, one scene) stay in one split where
    the splits are made here; None without groups."""
    possible_groups: "PossibleGroups | None" = None
    """Groups by a column or by file names that look like groups, if no option says so."""
    targets: np.ndarray | None = None
    """bool (N, C): the labels of each image, any number of them; None if each image has one label,
    the one in `labels`."""
    root: Path | None = None
    """The folder that holds exactly these images, if there is one."""
    path: Callable[[int], Path | None] = lambda i: None
    """Index -> its file; None if examples have no file each."""
    notes: tuple[str, ...] = ()
    """What the user should know before training, one sentence each; none is an error."""
    read_as: Callable[[int, Rendering], DecodedImage] | None = None
    """What `read` does, by another rendering; None where all images are 8-bit RGB."""

    def rendered(self, rendering: Rendering, *notes: str) -> "Source":
        """Return this dataset with its images decoded by `rendering`, and further notes."""
        read, read_as = self.read, self.read_as
        if read_as is not None:
            read = lambda i: read_as(i, rendering)  # noqa: E731
        return dataclasses.replace(self, read=read, notes=(*self.notes, *notes))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def strata(self) -> np.ndarray:
        """Return what splits are stratified by, int (N,): the labels, or what stands for them."""
        return self.labels if self.targets is None else stratification_labels(self.targets)

    def label_text(self, i: int) -> str:
        """Return the label of an image, or its labels: `circle|square`, "" without any."""
        if self.targets is None:
            return self.class_names[self.labels[i]]
        return join_labels(self.class_names, self.targets[i])

    def class_counts(self, indices: np.ndarray) -> np.ndarray:
        """Count the images of each class among `indices`, int64 (C,)."""
        if self.targets is None:
            return np.bincount(self.labels[indices], minlength=len(self.class_names))
        return self.targets[indices].sum(0)

    @cached_property
    def split_of(self) -> np.ndarray:
        """Return each image's official split, str (N,); "" without one."""
        names = np.full(len(self), "", "<U5")
        for name, indices in (self.splits or {}).items():
            names[indices] = name
        return names


class PossibleGroups(NamedTuple):
    """Groups that an option would form."""

    option: str
    """`group_column` or `group_pattern`."""
    value: str
    groups: np.ndarray
    """As `Source.groups`."""


class ImageFile(NamedTuple):
    """A labeled image file."""

    id: str
    label: str
    split: str
    """train, val, test, or empty."""
    size: int
    """In bytes."""
    group: str = ""
    """The name of its group; empty if it is in none."""


class Observation(NamedTuple):
    """What a scan noticed without a reason to refuse the dataset."""

    kind: str
    """A kind of finding, see `vggjax doctor`."""
    note: str
    """One sentence, which is also one of the source's notes."""
    cases: tuple[str, ...] = ()
    """The files, below the root; doctor lists them in place of the sentence."""


@dataclass(frozen=True, eq=False)
class Scan:
    """The result of scanning a dataset, including its errors; no image was opened."""

    source: Source | None
    """The usable labeled images; None if there are none."""
    faults: tuple[str, ...] = ()
    """Error messages: each is a reason why the dataset cannot be trained on."""
    empty: tuple[str, ...] = ()
    """Class folders without images, below the root."""
    observations: tuple[Observation, ...] = ()
    missing: tuple[str, ...] = ()
    """Paths in a CSV that do not exist, as written there."""


def fingerprint(
    class_names: Iterable[str],
    ids: Iterable[str],
    labels: np.ndarray,
    splits: dict[str, np.ndarray] | None,
    sizes: Iterable[int],
    targets: np.ndarray | None = None,
) -> str:
    """Return the SHA-256 of a dataset's contents, independent of its location."""
    digest = hashlib.sha256()
    for part in (class_names, ids, map(str, sizes)):
        digest.update("\0".join(part).encode("utf-8", "surrogateescape") + b"\0\0")
    digest.update(np.asarray(labels, "<i4").tobytes())
    if targets is not None:
        digest.update(np.packbits(targets).tobytes())
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
    targets: np.ndarray | None = None,
) -> Source:
    """Return the source of image files; `locate` maps an id to its path.

    With `targets`, bool (N, C), they are the labels, not the files' own.
    """
    if targets is None:
        label_of = {class_name: i for i, class_name in enumerate(class_names)}
        labels = np.asarray([label_of[file.label] for file in files], np.int32)
    else:
        labels = number_combinations(targets)
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
        read_as=lambda i, rendering: read_image(locate(ids[i]), rendering),
        fingerprint=fingerprint(
            class_names, ids, labels, splits, [file.size for file in files], targets
        ),
        targets=targets,
        root=root,
        groups=number_groups([file.group for file in files]),
        path=lambda i: locate(ids[i]),
        notes=(*_class_notes(class_names), *notes),
    )


def number_groups(names: Sequence[str]) -> np.ndarray | None:
    """Return each image's group as the index of its first image, int64 (N,); None without groups.

    An image without a name of a group is alone.
    """
    if not any(names):
        return None
    first: dict[str, int] = {}
    numbers = [first.setdefault(name, i) if name else i for i, name in enumerate(names)]
    return np.asarray(numbers, np.int64)


def describe_groups(names: Sequence[str]) -> str:
    """Describe groups for a note: their number, and how many images are in none."""
    text = f"{len({*names} - {''}):,} groups of images, each in one split,"
    alone = sum(not name for name in names)
    return f"{text} and {alone:,} images in none," if alone else text


def make_split_source(
    name: str,
    class_names: tuple[str, ...],
    labels: dict[str, np.ndarray],
    *,
    read: Callable[[int], DecodedImage],
    sizes: Iterable[int],
) -> Source:
    """Return the source of images that their split and their position in it identify.

    `labels` holds the labels of each split, by the dataset's names for them, in the order of
    `read`; `sizes`, in bytes, tell versions of the dataset apart.
    """
    starts = np.cumsum([0, *map(len, labels.values())])
    splits = {
        SPLIT_WORDS[split]: np.arange(start, start + len(part))
        for start, (split, part) in zip(starts, labels.items(), strict=False)
    }
    official = splits if len(splits) > 1 else None
    ids = [f"{split}/{i}" for split, part in labels.items() for i in range(len(part))]
    all_labels = np.concatenate(list(labels.values()))
    return Source(
        name=name,
        class_names=class_names,
        labels=all_labels,
        ids=ids,
        splits=official,
        read=read,
        fingerprint=fingerprint(class_names, ids, all_labels, official, sizes),
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
    """Describe names for no label, numbers sorted as text, and names that are easily confused."""
    notes = []
    unknown = [name for name in class_names if name.lower() in _NO_LABEL]
    if unknown and not {*class_names} <= {"-1", "0", "1"}:
        notes.append(
            f"Class {join_names(map(repr, unknown))} may stand for no label. If so, leave these "
            f"images out, or they are learned as a class."
        )
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
