"""Find images that occur more than once in a dataset, exactly or nearly.

Exact: the same decoded pixels, whatever the file's name, format or metadata. Near: the same
photograph re-encoded, resized, cropped by a few percent or brightened, as similarity.py decides.
Every image is decoded once. The result depends neither on the number of threads nor on the memory:
300 bytes are kept per image, and no table of all pairs. A burst of one scene is one group, because
its images leak between splits as copies do.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vggjax.data.images.decode import BLANKS
from vggjax.data.quality.similarity import (
    MAX_DISTANCE,
    THUMB_PX,
    image_signature,
    is_near_duplicate,
)
from vggjax.data.sources.source import Source
from vggjax.data.splits.stratify import connect
from vggjax.errors import DataError

_READ_CHUNK = 32
_ROWS, _COLUMNS = 16, 8192
"""Hashes compared at once: a block of differences, 1 MB, fits the processor's cache."""

_TASK_BLOCKS = 64  # blocks of rows per task of a thread

_MAX_CANDIDATES = 64
"""Compared with one image; bounds the time if all look alike, as frames of a fixed camera."""


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Groups of equal images, and what decoding every image revealed."""

    groups: np.ndarray
    """int64 (N,): the smallest index of the same image; a unique image has its own."""
    exact_groups: np.ndarray
    """int64 (N,): the same for equal pixels only, a refinement of `groups`."""
    unreadable: dict[int, str]
    """Index -> reason, in order; each is alone in its group."""
    sizes: np.ndarray
    """int32 (N, 2): width and height in px, 0 if unreadable."""
    notes: list[tuple[str, ...]]
    """(N,): each image's `DecodedImage.notes`."""

    @property
    def exact(self) -> int:
        """Return the number of images with the pixels of an earlier one."""
        return len(self.groups) - len(np.unique(self.exact_groups))

    @property
    def near(self) -> int:
        """Return the number of images beyond the first of their group, without the exact ones."""
        return len(np.unique(self.exact_groups)) - len(np.unique(self.groups))

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of exact and of near duplicates."""
        return {"exact": self.exact, "near": self.near}

    def members(self, *, exact: bool = False) -> list[list[int]]:
        """Return the groups of two or more images, ordered by their first image."""
        members = defaultdict(list)
        for i, group in enumerate((self.exact_groups if exact else self.groups).tolist()):
            members[group].append(i)
        return [images for images in members.values() if len(images) > 1]


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
    """
    with ThreadPoolExecutor(num_threads or os.cpu_count() or 1, "vggjax-duplicates") as threads:
        try:
            images = _Images(source, near=near)
            images.decode(threads, progress)
            _, first, inverse = np.unique(images.digests, return_index=True, return_inverse=True)
            exact_groups = groups = first[inverse]
            if near:
                is_first = exact_groups == np.arange(len(source))
                candidates = np.flatnonzero(is_first & images.comparable)
                pairs = _near_pairs(images.hashes, images.thumbs, candidates, threads)
                equal = np.stack([np.arange(len(source)), exact_groups], 1)
                groups = connect(len(source), np.concatenate([equal, pairs]))
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
    return Duplicates(groups, exact_groups, images.unreadable, images.sizes, images.notes)


def find_blank_fault(duplicates: Duplicates) -> str | None:
    """Return why training refuses a dataset of which most images are one color; None if not."""
    counts = Counter(note for notes in duplicates.notes for note in notes if note in BLANKS)
    for note, count in counts.items():
        if 2 * count > len(duplicates.notes):
            other = "white" if note.endswith("black") else "black"
            return (
                f"{count:,} of {len(duplicates.notes):,} images are {note}, as white drawings are "
                f"over white. Give `background` {other}."
            )
    return None


class _Images:
    """What is kept of each image when it is decoded; of an unreadable one, zeros."""

    def __init__(self, source: Source, *, near: bool) -> None:
        count = len(source)
        self._source, self._near = source, near
        self.digests = np.zeros(count, "V16")  # of shape and pixels; each unreadable one differs
        self.hashes = np.zeros(count, np.uint64)
        self.thumbs = np.zeros((count if near else 0, THUMB_PX**2), np.uint8)
        self.comparable = np.zeros(count, bool)  # large enough for a perceptual hash
        self.sizes = np.zeros((count, 2), np.int32)
        self.notes: list[tuple[str, ...]] = [()] * count
        self.unreadable: dict[int, str] = {}

    def decode(
        self, threads: ThreadPoolExecutor, progress: Callable[[int, int], None] | None
    ) -> None:
        """Decode all images."""
        count = len(self.notes)
        chunks = [range(i, min(i + _READ_CHUNK, count)) for i in range(0, count, _READ_CHUNK)]
        results = threads.map(lambda chunk: [self._decode(i) for i in chunk], chunks)
        for chunk, reasons in zip(chunks, results, strict=True):
            self.unreadable |= {
                i: why for i, why in zip(chunk, reasons, strict=True) if why is not None
            }
            if progress is not None:
                progress(chunk.stop, count)

    def _decode(self, i: int) -> str | None:
        """Decode an image; return the reason if it is unreadable."""
        try:
            pixels, notes, _ = self._source.read(i)
        except DataError as error:
            self.digests[i] = np.void(i.to_bytes(16, "little"))
            return str(error)
        height, width = pixels.shape[:2]
        self.sizes[i] = width, height
        self.notes[i] = notes
        digest = hashlib.blake2b(f"{width}x{height}".encode(), digest_size=16)
        digest.update(np.ascontiguousarray(pixels).data)
        self.digests[i] = np.void(digest.digest())
        signature = image_signature(pixels) if self._near else None
        if signature is not None:
            self.hashes[i], self.thumbs[i] = signature[0], signature[1].ravel()
            self.comparable[i] = True
        return None


def _near_pairs(
    hashes: np.ndarray, thumbs: np.ndarray, indices: np.ndarray, threads: ThreadPoolExecutor
) -> np.ndarray:
    """Return the pairs among `indices` that are near-duplicates, int64 (K, 2)."""
    # Block by block: 200,000 images are 20 billion pairs of hashes, 16 s of one core.
    hashes = hashes[indices]

    def search(starts: range) -> np.ndarray:
        matches = []
        for start in starts:
            rows = hashes[start : start + _ROWS, None]
            blocks = [
                _close(rows, hashes[None, i : i + _COLUMNS], i - start)
                for i in range(start, len(hashes), _COLUMNS)
            ]
            row, column, distance = np.concatenate(blocks, 1)
            order = np.lexsort((column, distance, row))  # nearest first in each row
            rank = np.arange(len(row)) - np.searchsorted(row[order], row[order])
            nearest = order[rank < _MAX_CANDIDATES]
            pairs = indices[start + np.stack([row[nearest], column[nearest]], 1)]
            matches.append(pairs[is_near_duplicate(thumbs[pairs[:, 0]], thumbs[pairs[:, 1]])])
        return np.concatenate(matches)

    starts = range(0, len(indices), _ROWS)
    tasks = [starts[i : i + _TASK_BLOCKS] for i in range(0, len(starts), _TASK_BLOCKS)]
    return np.concatenate([np.zeros((0, 2), np.int64), *threads.map(search, tasks)])


def _close(rows: np.ndarray, columns: np.ndarray, offset: int) -> np.ndarray:
    """Return (row, column, distance) of close hashes, int64 (3, K), each column after its row."""
    distances = np.bitwise_count(rows ^ columns)
    # Flat: a two-dimensional np.nonzero would take longer than everything else.
    row, column = np.divmod(np.flatnonzero(distances <= MAX_DISTANCE), distances.shape[1])
    later = column + offset > row
    row, column = row[later], column[later]
    return np.stack([row, column + offset, distances[row, column].astype(np.int64)])
