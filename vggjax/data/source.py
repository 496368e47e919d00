"""What a data set is to the rest of the package, wherever its pictures lie.

Labels, names and splits are in memory; a picture is read when it is asked for, one by one, from
any thread. Finding and opening data sets is in sources.py.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vggjax.data.pictures import Picture


@dataclass(frozen=True, eq=False)
class Source:
    """A labelled set of pictures, of which only the labels are in memory."""

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    """int32 (N,), indices into `class_names`."""
    ids: Sequence[str]
    """(N,): the path below `root` with `/`, or `train/17`, the split and the place in it."""
    splits: dict[str, np.ndarray] | None
    """The data set's own: some of `train`, `val` and `test` -> indices; None where it has none."""
    read: Callable[[int], Picture]
    """Index -> the decoded picture; raises `DataError` with the reason alone."""
    fingerprint: str
    """SHA-256 of class names, ids, labels, splits and sizes: another one is another data set."""
    root: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> Path | None:
        """Gives the file behind an example, or None where there is none of its own."""
        return None if self.root is None else self.root / self.ids[i]


def fingerprint(
    class_names: Iterable[str],
    ids: Iterable[str],
    labels: np.ndarray,
    splits: dict[str, np.ndarray] | None,
    sizes: Iterable[int],
) -> str:
    """Gives the SHA-256 of what makes a data set this one; where it lies does not count."""
    digest = hashlib.sha256()
    for part in (class_names, ids, map(str, sizes)):
        text = "\0".join(part)
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0\0")
    digest.update(np.asarray(labels, "<i4").tobytes())
    for name in sorted(splits or {}):
        digest.update(name.encode() + np.asarray(splits[name], "<i8").tobytes())
    return digest.hexdigest()
