"""Finds the images of a dataset that are there more than once, exactly or nearly.

Exact: the same decoded pixels, whatever the file's name, format or metadata (a PNG that was saved
again counts). Near: the same photograph saved again, resized, cropped by a few per cent or
brightened, as alike.py tells it. Every image is read once. The result depends neither on the
number of threads nor on the machine's memory: 300 bytes are kept for each image, and no table of
all pairs. A burst of one scene is one group, since its images leak as copies do.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vggjax.data.quality.similarity import MAX_DISTANCE, THUMB_PX, describe, is_near_duplicate
from vggjax.data.sources.source import Source
from vggjax.errors import ConfigError, DataError

_READ_CHUNK = 32
_ROWS, _COLUMNS = 16, 8192
"""Hashes compared at once: a block of differences, 1 MB, stays in the processor's cache."""

_BLOCKS = 64  # rows of blocks that a thread takes at a time

_MAX_CANDIDATES = 64
"""Compared with one image; bounds the time where all look alike, as a fixed camera's frames."""


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Which images are the same, and what reading them all has shown."""

    groups: np.ndarray
    """int64 (N,): the smallest index of the same image; an image alone has its own."""
    exact_groups: np.ndarray
    """int64 (N,): the same for equal pixels only, a part of `groups`."""
    exact: int
    """Images beyond the first of those with equal pixels."""
    near: int
    """Images beyond the first of their group that equal no earlier one pixel by pixel."""
    unreadable: dict[int, str]
    """Index -> reason, in order; each is alone in its group."""
    sizes: np.ndarray
    """int32 (N, 2): width and height, 0 where it cannot be read."""
    notes: list[tuple[str, ...]]
    """(N,): each image's `Image.notes`."""

    def members(self, *, exact: bool = False) -> list[list[int]]:
        """Lists the groups of two or more, by their first image."""
        groups = self.exact_groups if exact else self.groups
        found: dict[int, list[int]] = {}
        for i in np.flatnonzero(np.bincount(groups, minlength=len(groups))[groups] > 1):
            found.setdefault(int(groups[i]), []).append(int(i))
        return list(found.values())


@dataclass(eq=False)
class _Seen:
    """What is kept of the images: a row for each."""

    digests: np.ndarray
    """V16 (N,): of shape and pixels."""
    hashes: np.ndarray
    """uint64 (N,)."""
    thumbs: np.ndarray
    """uint8 (N, 256)."""
    comparable: np.ndarray
    """bool (N,): there is enough in it for a perceptual hash."""


def find_duplicates(
    source: Source,
    *,
    near: bool = True,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Duplicates:
    """Reads every image and groups the equal ones; an image that cannot be read is alone.

    `near=False` compares pixels only. `progress` is called with (done, of) while images are read,
    from this thread.
    """
    if num_threads is not None and num_threads < 1:
        raise ConfigError(f"--num-threads must be 1 or more; got {num_threads}.")
    count = len(source)
    with ThreadPoolExecutor(num_threads or os.cpu_count() or 1, "vggjax-duplicates") as threads:
        try:
            seen, unreadable, sizes, notes = _read_all(source, near, threads, progress)
            exact_groups = _group_equal(seen.digests, unreadable)
            groups = exact_groups
            if near:
                first = np.flatnonzero((exact_groups == np.arange(count)) & seen.comparable)
                groups = _join(exact_groups, _near_pairs(seen, first, threads))
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
    exact = count - len(np.unique(exact_groups))
    return Duplicates(
        groups=groups,
        exact_groups=exact_groups,
        exact=exact,
        near=count - len(np.unique(groups)) - exact,
        unreadable=unreadable,
        sizes=sizes,
        notes=notes,
    )


def _read_all(
    source: Source,
    near: bool,
    threads: ThreadPoolExecutor,
    progress: Callable[[int, int], None] | None,
) -> tuple[_Seen, dict[int, str], np.ndarray, list[tuple[str, ...]]]:
    count = len(source)
    seen = _Seen(
        np.zeros(count, "V16"),
        np.zeros(count, np.uint64),
        np.zeros((count if near else 0, THUMB_PX**2), np.uint8),
        np.zeros(count, bool),
    )
    digests = seen.digests.view(np.uint8).reshape(count, 16)
    sizes, notes = np.zeros((count, 2), np.int32), [()] * count
    unreadable: dict[int, str] = {}
    known: dict[tuple[str, ...], tuple[str, ...]] = {}  # one object for each kind of notes

    def read(i: int) -> str | None:
        try:
            pixels, noted = source.read(i)
        except DataError as error:
            return str(error)
        height, width = pixels.shape[:2]
        sizes[i] = width, height
        notes[i] = known.setdefault(noted, noted)
        digest = hashlib.blake2b(f"{width}x{height}".encode(), digest_size=16)
        digest.update(np.ascontiguousarray(pixels))
        digests[i] = np.frombuffer(digest.digest(), np.uint8)
        described = describe(pixels) if near else None
        if described is not None:
            seen.hashes[i], seen.thumbs[i] = described[0], described[1].ravel()
            seen.comparable[i] = True
        return None

    chunks = [range(at, min(at + _READ_CHUNK, count)) for at in range(0, count, _READ_CHUNK)]
    for chunk, reasons in zip(
        chunks, threads.map(lambda c: [read(i) for i in c], chunks), strict=True
    ):
        unreadable |= {i: why for i, why in zip(chunk, reasons, strict=True) if why is not None}
        if progress is not None:
            progress(chunk.stop, count)
    return seen, unreadable, sizes, notes


def _group_equal(digests: np.ndarray, unreadable: dict[int, str]) -> np.ndarray:
    groups = np.arange(len(digests))
    readable = np.delete(groups, list(unreadable))
    _, first, inverse = np.unique(digests[readable], return_index=True, return_inverse=True)
    groups[readable] = readable[first[inverse]]
    return groups


def _near_pairs(seen: _Seen, indices: np.ndarray, threads: ThreadPoolExecutor) -> np.ndarray:
    """Compares each of these images with those after it; int64 (K, 2), pairs that are the same.

    All pairs of hashes, block by block: 200,000 have 20 billion differences, 16 s of one core.
    """
    hashes = seen.hashes[indices]

    def search(starts: range) -> np.ndarray:
        different = np.empty((_ROWS, _COLUMNS), np.uint64)
        apart = np.empty((_ROWS, _COLUMNS), np.uint8)
        found = []
        for start in starts:
            rows = hashes[start : start + _ROWS, None]
            parts = [
                _close(rows, hashes[None, at : at + _COLUMNS], different, apart, at - start)
                for at in range(start, len(hashes), _COLUMNS)
            ]
            row, column, distance = np.concatenate(parts, 1)
            order = np.lexsort((column, distance, row))  # in each row the nearest first
            place = np.arange(len(row)) - np.searchsorted(row[order], row[order])
            nearest = order[place < _MAX_CANDIDATES]
            pairs = indices[start + np.stack([row[nearest], column[nearest]], 1)]
            found.append(
                pairs[is_near_duplicate(seen.thumbs[pairs[:, 0]], seen.thumbs[pairs[:, 1]])]
            )
        return np.concatenate(found)

    blocks = range(0, len(indices), _ROWS)
    tasks = [blocks[at : at + _BLOCKS] for at in range(0, len(blocks), _BLOCKS)]
    return np.concatenate([np.zeros((0, 2), np.int64), *threads.map(search, tasks)])


def _close(
    rows: np.ndarray, columns: np.ndarray, different: np.ndarray, apart: np.ndarray, offset: int
) -> np.ndarray:
    """Gives (row, column, distance) of close hashes, int64 (3, K), each column after its row."""
    shape = len(rows), columns.shape[1]
    if shape != apart.shape:
        different, apart = np.empty(shape, np.uint64), np.empty(shape, np.uint8)
    np.bitwise_xor(rows, columns, out=different)
    np.bitwise_count(different, out=apart)
    # Flat: numpy's search through a plane takes longer than all the rest.
    row, column = np.divmod(np.flatnonzero(apart <= MAX_DISTANCE), shape[1])
    later = column + offset > row
    row, column = row[later], column[later]
    return np.stack([row, column + offset, apart[row, column].astype(np.int64)])


def _join(groups: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Unites the groups of each pair; the smallest index of a group stays its number."""
    parent = groups.tolist()

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in pairs.tolist():
        one, other = sorted((find(i), find(j)))
        parent[other] = one
    return np.array([find(i) for i in range(len(parent))], np.int64).reshape(len(parent))
