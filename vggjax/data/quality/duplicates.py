"""Find images that occur more than once in a dataset, exactly or nearly.

Exact: the same decoded pixels, whatever the file's name, format or metadata. Near: the same
photograph re-encoded, resized, cropped by a few percent or brightened, as similarity.py decides.
Every image is decoded once. The result depends neither on the number of threads nor on the memory:
300 bytes are kept per image, and no table of all pairs. A burst of one scene is one group, because
its images leak between splits as copies do.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vggjax.data.quality.similarity import (
    MAX_DISTANCE,
    THUMB_PX,
    image_signature,
    is_near_duplicate,
)
from vggjax.data.sources.source import Source
from vggjax.errors import ConfigError, DataError

_READ_CHUNK = 32
_ROWS, _COLUMNS = 16, 8192
"""Hashes compared at once: a block of differences, 1 MB, fits the processor's cache."""

_TASK_BLOCKS = 64  # blocks of rows per task of a thread

_MAX_CANDIDATES = 64
"""Compared with one image; bounds the time if all look alike, as frames of a fixed camera."""


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Groups of equal images, and what decoding every image has shown."""

    groups: np.ndarray
    """int64 (N,): the smallest index of the same image; a unique image has its own."""
    exact_groups: np.ndarray
    """int64 (N,): the same for equal pixels only, a refinement of `groups`."""
    exact: int
    """Images with the pixels of an earlier one."""
    near: int
    """Images, beyond the first of their group, with the pixels of no earlier one."""
    unreadable: dict[int, str]
    """Index -> reason, in order; each is alone in its group."""
    sizes: np.ndarray
    """int32 (N, 2): width and height in px, 0 if unreadable."""
    notes: list[tuple[str, ...]]
    """(N,): each image's `DecodedImage.notes`."""

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of exact and of near duplicates."""
        return {"exact": self.exact, "near": self.near}

    def members(self, *, exact: bool = False) -> list[list[int]]:
        """Return the groups of two or more images, ordered by their first image."""
        groups = self.exact_groups if exact else self.groups
        members: dict[int, list[int]] = {}
        for i in np.flatnonzero(np.bincount(groups, minlength=len(groups))[groups] > 1):
            members.setdefault(int(groups[i]), []).append(int(i))
        return list(members.values())


@dataclass(eq=False)
class _Signatures:
    """One row per image."""

    digests: np.ndarray
    """V16 (N,): of shape and pixels."""
    hashes: np.ndarray
    """uint64 (N,)."""
    thumbs: np.ndarray
    """uint8 (N, 256)."""
    comparable: np.ndarray
    """bool (N,): large enough for a perceptual hash."""


def find_duplicates(
    source: Source,
    *,
    near: bool = True,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Duplicates:
    """Decode every image and group the equal ones; an unreadable image is alone.

    `near=False` compares pixels only. `progress` is called with (done, total) while images are
    decoded, from this thread.

    Raises:
        ConfigError: `num_threads` is below 1.
    """
    if num_threads is not None and num_threads < 1:
        raise ConfigError(f"`num_threads` must be 1 or more; got {num_threads}.")
    count = len(source)
    with ThreadPoolExecutor(num_threads or os.cpu_count() or 1, "vggjax-duplicates") as threads:
        try:
            signatures, unreadable, sizes, notes = _decode_all(source, near, threads, progress)
            exact_groups = _group_equal(signatures.digests, unreadable)
            groups = exact_groups
            if near:
                is_first = exact_groups == np.arange(count)
                candidates = np.flatnonzero(is_first & signatures.comparable)
                groups = _unite(exact_groups, _near_pairs(signatures, candidates, threads))
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


def _decode_all(
    source: Source,
    near: bool,
    threads: ThreadPoolExecutor,
    progress: Callable[[int, int], None] | None,
) -> tuple[_Signatures, dict[int, str], np.ndarray, list[tuple[str, ...]]]:
    count = len(source)
    signatures = _Signatures(
        np.zeros(count, "V16"),
        np.zeros(count, np.uint64),
        np.zeros((count if near else 0, THUMB_PX**2), np.uint8),
        np.zeros(count, bool),
    )
    digests = signatures.digests.view(np.uint8).reshape(count, 16)
    sizes = np.zeros((count, 2), np.int32)
    notes: list[tuple[str, ...]] = [()] * count
    unreadable: dict[int, str] = {}
    known_notes: dict[tuple[str, ...], tuple[str, ...]] = {}  # one object per distinct value

    def decode(i: int) -> str | None:
        try:
            pixels, image_notes = source.read(i)
        except DataError as error:
            return str(error)
        height, width = pixels.shape[:2]
        sizes[i] = width, height
        notes[i] = known_notes.setdefault(image_notes, image_notes)
        digest = hashlib.blake2b(f"{width}x{height}".encode(), digest_size=16)
        digest.update(np.ascontiguousarray(pixels).data)
        digests[i] = np.frombuffer(digest.digest(), np.uint8)
        signature = image_signature(pixels) if near else None
        if signature is not None:
            signatures.hashes[i], signatures.thumbs[i] = signature[0], signature[1].ravel()
            signatures.comparable[i] = True
        return None

    chunks = [range(i, min(i + _READ_CHUNK, count)) for i in range(0, count, _READ_CHUNK)]
    results = threads.map(lambda chunk: [decode(i) for i in chunk], chunks)
    for chunk, reasons in zip(chunks, results, strict=True):
        unreadable |= {i: why for i, why in zip(chunk, reasons, strict=True) if why is not None}
        if progress is not None:
            progress(chunk.stop, count)
    return signatures, unreadable, sizes, notes


def _group_equal(digests: np.ndarray, unreadable: dict[int, str]) -> np.ndarray:
    groups = np.arange(len(digests))
    readable = np.delete(groups, list(unreadable))
    _, first, inverse = np.unique(digests[readable], return_index=True, return_inverse=True)
    groups[readable] = readable[first[inverse]]
    return groups


def _near_pairs(
    signatures: _Signatures, indices: np.ndarray, threads: ThreadPoolExecutor
) -> np.ndarray:
    """Return the pairs among `indices` that are near-duplicates, int64 (K, 2).

    All pairs of hashes are compared block by block: 200,000 images are 20 billion pairs, 16 s of
    one core.
    """
    hashes = signatures.hashes[indices]

    def search(starts: range) -> np.ndarray:
        different = np.empty((_ROWS, _COLUMNS), np.uint64)
        distances = np.empty((_ROWS, _COLUMNS), np.uint8)
        matches = []
        for start in starts:
            rows = hashes[start : start + _ROWS, None]
            blocks = [
                _close(rows, hashes[None, i : i + _COLUMNS], different, distances, i - start)
                for i in range(start, len(hashes), _COLUMNS)
            ]
            row, column, distance = np.concatenate(blocks, 1)
            order = np.lexsort((column, distance, row))  # nearest first in each row
            rank = np.arange(len(row)) - np.searchsorted(row[order], row[order])
            nearest = order[rank < _MAX_CANDIDATES]
            pairs = indices[start + np.stack([row[nearest], column[nearest]], 1)]
            one, other = signatures.thumbs[pairs[:, 0]], signatures.thumbs[pairs[:, 1]]
            matches.append(pairs[is_near_duplicate(one, other)])
        return np.concatenate(matches)

    starts = range(0, len(indices), _ROWS)
    tasks = [starts[i : i + _TASK_BLOCKS] for i in range(0, len(starts), _TASK_BLOCKS)]
    return np.concatenate([np.zeros((0, 2), np.int64), *threads.map(search, tasks)])


def _close(
    rows: np.ndarray, columns: np.ndarray, different: np.ndarray, distances: np.ndarray, offset: int
) -> np.ndarray:
    """Return (row, column, distance) of close hashes, int64 (3, K), each column after its row."""
    shape = len(rows), columns.shape[1]
    if shape != distances.shape:
        different, distances = np.empty(shape, np.uint64), np.empty(shape, np.uint8)
    np.bitwise_xor(rows, columns, out=different)
    np.bitwise_count(different, out=distances)
    # Flat: a two-dimensional np.nonzero would take longer than everything else.
    row, column = np.divmod(np.flatnonzero(distances <= MAX_DISTANCE), shape[1])
    later = column + offset > row
    row, column = row[later], column[later]
    return np.stack([row, column + offset, distances[row, column].astype(np.int64)])


def _unite(groups: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Merge the groups of each pair; a group's number is its smallest index (union-find)."""
    parent = groups.tolist()

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in pairs.tolist():
        first, second = sorted((root(i), root(j)))
        parent[second] = first
    return np.array([root(i) for i in range(len(parent))], np.int64).reshape(len(parent))
