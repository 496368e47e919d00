"""What a dataset is to the rest of the package, wherever its images lie.

Labels, names and splits are in memory; an image is read when it is asked for, one by one, from
any thread. Finding and opening datasets is in sources.py.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vggjax.data.images.decode import DecodedImage
from vggjax.errors import DataError

SPLIT_WORDS = {
    "train": "train",
    "validation": "val",
    "val": "val",
    "valid": "val",
    "test": "test",
}
"""What people call a split, in lower case -> what it is here."""


@dataclass(frozen=True, eq=False)
class Source:
    """A labeled set of images, of which only the labels are in memory."""

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    """int32 (N,), indices into `class_names`."""
    ids: Sequence[str]
    """(N,), unique: the path below `root` with `/`, the path that a list gives, or `train/17`, the
    split and the place in it."""
    splits: dict[str, np.ndarray] | None
    """The dataset's own: some of `train`, `val` and `test` -> indices; None where it has none."""
    read: Callable[[int], DecodedImage]
    """Index -> the decoded image; raises `DataError` with the reason alone."""
    fingerprint: str
    """SHA-256 of class names, ids, labels, splits and sizes: another one is another dataset."""
    root: Path | None = None
    """The folder that holds the images and nothing else, where there is one."""
    locate: Callable[[int], Path] | None = None
    """Index -> its file, where that is not `root / ids[i]`."""
    notes: tuple[str, ...] = ()
    """What a person should know before training on it, a sentence each; none is an error."""

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> Path | None:
        """Gives the file behind an example, or None where there is none of its own."""
        if self.locate is not None:
            return self.locate(i)
        return None if self.root is None else self.root / self.ids[i]


@dataclass(frozen=True, eq=False)
class Scan:
    """What was found where a dataset should be, its faults with it; no image was opened."""

    source: Source | None
    """The labeled images, as far as they can be used; None where there are none."""
    faults: tuple[str, ...] = ()
    """What keeps the dataset from being trained on: the message of an error each."""
    empty: tuple[str, ...] = ()
    """Class folders without an image, below the root."""
    loose: tuple[str, ...] = ()
    """Images that lie beside class folders, below the root: they have no label."""
    others: tuple[str, ...] = ()
    """Files whose ending is no image's, below the root; hidden ones and `Thumbs.db` left out."""
    missing: tuple[str, ...] = ()
    """Images that a list names and that are not there, as it writes them."""

    def checked(self) -> Source:
        """Gives the dataset.

        Raises:
            DataError: it has a fault; the first one is told.
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
    """Gives the SHA-256 of what makes a dataset this one; where it lies does not count."""
    digest = hashlib.sha256()
    for part in (class_names, ids, map(str, sizes)):
        text = "\0".join(part)
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0\0")
    digest.update(np.asarray(labels, "<i4").tobytes())
    for name in sorted(splits or {}):
        digest.update(name.encode() + np.asarray(splits[name], "<i8").tobytes())
    return digest.hexdigest()
