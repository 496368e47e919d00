"""The contents of a dataset's files, kept with the run: what changed where names and sizes agree.

`contents.json` has a line per image of the dataset, in its order: size, times, inode and BLAKE2b of
its file. A file whose size, times and inode are as they were is not read again. Runs of earlier
versions have no such file, and datasets without a file per image (of tfds) need none.
"""

import contextlib
import csv
import dataclasses
import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from vggjax.csv_text import csv_rows
from vggjax.data.multilabel import SEPARATOR
from vggjax.data.sources.source import Source
from vggjax.data.splits.splits import SPLITS_FILE
from vggjax.errors import ConfigError, DataError, printable
from vggjax.training.run_dir.checked_json import read_json, write_json

CONTENTS_FILE = "contents.json"

_DIGEST_BYTES = 16


class FileState(NamedTuple):
    """A file as it was when it was read."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    digest: str

    @property
    def stamp(self) -> tuple[int, ...]:
        """Return what changes whenever the file is written or replaced."""
        return self[:4]


class Contents:
    """Collects the state of each file of a source, from the threads that read the images."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._states: dict[str, FileState] = {}

    def add(self, i: int) -> None:
        """Read the file of an image, if it has one that can be read."""
        state = read_state(self._source.path(i))
        if state is not None:
            self._states[self._source.ids[i]] = state

    def add_all(self, num_threads: int | None, progress: Callable[[int, int], None] | None) -> None:
        """Read the files of all images; `progress` is called with (done, total)."""
        count = len(self._source)
        with ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as threads:
            for done, _ in enumerate(threads.map(self.add, range(count)), start=1):
                if progress is not None and (done % 100 == 0 or done == count):
                    progress(done, count)

    def states(self) -> dict[str, FileState | None]:
        """Return the state of each file by the image's id, in order; empty if there are none."""
        return {id: self._states.get(id) for id in self._source.ids} if self._states else {}


def read_state(path: Path | None) -> FileState | None:
    """Return the state of a regular file; None if there is none that can be read."""
    try:
        if path is None or not stat.S_ISREG(os.stat(path).st_mode):
            return None  # opening a pipe would block
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES))
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return None
    return FileState(*_stamp(status), digest.hexdigest())


def write_contents(workdir: Path, states: dict[str, FileState | None]) -> None:
    """Write `contents.json`; do nothing if there are no files."""
    if states:
        files = {id: " ".join(map(str, state or ())) for id, state in states.items()}
        write_json(workdir / CONTENTS_FILE, {"files": files})


def read_contents(workdir: Path) -> dict[str, FileState | None]:
    """Read `contents.json`; empty if there is none.

    Raises:
        ConfigError: it is damaged.
    """
    path = workdir / CONTENTS_FILE
    if not path.exists():
        return {}
    try:
        states: dict[str, FileState | None] = {}
        for id, text in read_json(path)["files"].items():
            size, mtime_ns, ctime_ns, inode, digest = text.split() or 5 * [""]
            stamp = int(size or 0), int(mtime_ns or 0), int(ctime_ns or 0), int(inode or 0)
            states[id] = FileState(*stamp, digest) if digest else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{printable(path)} is damaged, so changes in the contents of images cannot be found. "
            "Restore it, or delete it to go on without that check."
        ) from None
    return states


def find_changed(workdir: Path, source: Source) -> list[str]:
    """Return the images whose files have other contents than when the run began.

    If only times or inodes differ, as in a copy of the dataset, they are brought up to date.
    """
    known = read_contents(workdir)
    touched: list[int] = []
    changed: set[str] = set()
    for i, id in enumerate(source.ids):
        state, path = known.get(id), source.path(i)
        if state is None or path is None:
            continue
        try:
            stamp = _stamp(os.stat(path))
        except (OSError, ValueError):
            continue  # an unreadable image, which is named where it is read
        if stamp[0] != state.size:
            changed.add(id)
        elif stamp != state.stamp:
            touched.append(i)
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        states = list(threads.map(lambda i: read_state(source.path(i)), touched))
    for i, now in zip(touched, states, strict=True):
        before = known[source.ids[i]]
        assert before is not None
        if now is not None and now.digest != before.digest:
            changed.add(source.ids[i])
        known[source.ids[i]] = now or before
    if touched and not changed:
        with contextlib.suppress(OSError):  # then they are read again next time
            write_contents(workdir, known)
    return [id for id in source.ids if id in changed]


def with_missing_images(workdir: Path, source: Source, facts: Mapping[str, Any]) -> Source:
    """Return the dataset as it was when the run began, if nothing but some images is missing.

    To read a missing image is an error, as for one that is damaged. Its labels are those in
    `splits.csv`. Any other dataset is returned as it is.

    Args:
        workdir: the run's folder.
        source: the dataset as it is now.
        facts: what `data.json` says of the dataset as it was.
    """
    ids, position = list(read_contents(workdir)), {id: i for i, id in enumerate(source.ids)}
    rows = _read_rows(workdir)
    label_of = {name: i for i, name in enumerate(facts["class_names"])}
    is_part = position.keys() <= set(ids) and set(source.class_names) <= label_of.keys()
    if len(ids) <= len(source) or not is_part or not rows:
        return source
    at = np.array([position.get(id, -1) for id in ids])
    is_missing = at < 0
    labels, targets, split_of = source.labels[at], None, source.split_of[at]
    if source.targets is not None:
        targets = np.zeros((len(ids), len(label_of)), bool)
        targets[:, [label_of[name] for name in source.class_names]] = source.targets[at]
    else:
        labels = np.array([label_of[name] for name in source.class_names], np.int32)[labels]
    for i in np.flatnonzero(is_missing):
        label, split_of[i] = rows.get(ids[i], ("", ""))
        if targets is not None:
            names = label.split(SEPARATOR)
            targets[i] = [name in names for name in label_of]
        else:
            labels[i] = label_of.get(label, 0)
    parts = {name: np.flatnonzero(split_of == name) for name in source.splits or {}}

    def refuse(*_: object) -> NoReturn:
        raise DataError("missing, and was there when the run began")

    read_as = source.read_as
    return dataclasses.replace(
        source,
        ids=ids,
        class_names=tuple(label_of),
        labels=labels,
        targets=targets,
        splits=parts or None,
        groups=None,
        possible_groups=None,
        read=lambda i: refuse() if is_missing[i] else source.read(int(at[i])),
        read_as=read_as
        and (lambda i, how: refuse() if is_missing[i] else read_as(int(at[i]), how)),
        path=lambda i: None if is_missing[i] else source.path(int(at[i])),
        fingerprint=facts["fingerprint"],
    )


def _read_rows(workdir: Path) -> dict[str, tuple[str, str]]:
    """Read `splits.csv` as image id -> (label, split); empty if it cannot be read."""
    path = workdir / SPLITS_FILE
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            return {id: (label, split) for id, label, split in csv_rows(file)}
    except (OSError, ValueError, csv.Error):
        return {}


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
