"""Find images that occur more than once in a dataset, exactly or nearly.

Exact: the same decoded pixels, whatever the file's name, format or metadata. Near: the same
photograph re-encoded, resized, cropped by a few percent or brightened, as similarity.py decides.
Turned: a near-duplicate once one of them is mirrored or rotated, as augmentation leaves them. Every
image is decoded once. The result depends neither on the number of threads nor on the memory:
600 bytes are kept per image, and no table of all pairs. A burst of one scene is one group, because
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
    TURNS,
    has_details,
    hash_frequencies,
    image_signature,
    is_near_duplicate,
    turn_frequencies,
    turn_thumbs,
    upright_turns,
)
from vggjax.data.sources.source import Source
from vggjax.data.splits.stratify import connect
from vggjax.errors import DataError

MAX_DARK = 31
"""Of 255: an eighth of the levels."""

_READ_CHUNK = 32
_BLOCK, _COLUMNS = 2**17, 8192
"""Pairs of hashes compared at once, of up to so many columns: 1 MB of differences, which fits the
processor's cache."""

_TASK_BLOCKS = 64  # blocks of rows per task of a thread
_MAX_PAIRS = 1024  # of thumbnails compared at once

_MAX_CANDIDATES = 64
"""Compared with one image; bounds the time if all look alike, as frames of a fixed camera."""


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Groups of equal images, and what decoding every image revealed."""

    groups: np.ndarray
    """int64 (N,): the smallest index of the same image; a unique image has its own."""
    near_groups: np.ndarray
    """int64 (N,): the same without mirrored and rotated copies, a refinement of `groups`."""
    exact_groups: np.ndarray
    """int64 (N,): the same for equal pixels only, a refinement of `near_groups`."""
    unreadable: dict[int, str]
    """Index -> reason, in order; each is alone in its group."""
    sizes: np.ndarray
    """int32 (N, 2): width and height in px, 0 if unreadable."""
    notes: list[tuple[str, ...]]
    """(N,): each image's `DecodedImage.notes`."""
    peaks: np.ndarray
    """uint8 (N,): the highest number among an image's pixels, 0 if unreadable."""

    @property
    def exact(self) -> int:
        """Return the number of images with the pixels of an earlier one."""
        return len(self.groups) - len(np.unique(self.exact_groups))

    @property
    def near(self) -> int:
        """Return the number of images beyond the first of their group, without the exact ones."""
        return len(np.unique(self.exact_groups)) - len(np.unique(self.near_groups))

    @property
    def turned(self) -> int:
        """Return the number of further images that are mirrored or rotated copies."""
        return len(np.unique(self.near_groups)) - len(np.unique(self.groups))

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of exact, near and turned duplicates."""
        return {"exact": self.exact, "near": self.near, "turned": self.turned}

    def members(self, groups: np.ndarray) -> list[list[int]]:
        """Return the groups, one of the three kinds, of two or more images by their first image."""
        members = defaultdict(list)
        for i, group in enumerate(groups.tolist()):
            members[group].append(i)
        return [images for images in members.values() if len(images) > 1]


def find_duplicates(
    source: Source,
    *,
    near: bool = True,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    visit: Callable[[int], None] | None = None,
) -> Duplicates:
    """Decode every image and group the equal ones; an unreadable image is alone.

    `near=False` compares pixels only. `progress` is called with (done, total) while images are
    decoded, from this thread; `visit` with each image before it is, from the thread that decodes
    it, so that what it reads of the file need not come from the disk twice.
    """
    with ThreadPoolExecutor(num_threads or os.cpu_count() or 1, "vggjax-duplicates") as threads:
        try:
            images = _Images(source, near=near, visit=visit)
            images.decode(threads, progress)
            _, first, inverse = np.unique(images.digests, return_index=True, return_inverse=True)
            exact = near_groups = groups = first[inverse]
            if near:
                is_first = exact == np.arange(len(source))
                indices = np.flatnonzero(is_first & images.comparable)
                low, thumbs = images.low[indices], images.thumbs[indices]
                edges = [np.stack([np.arange(len(source)), exact], 1)]
                edges.append(indices[_near_pairs(hash_frequencies(low), thumbs, threads)])
                near_groups = connect(len(source), np.concatenate(edges))
                edges.append(indices[_turned_pairs(low, thumbs, threads)])
                groups = connect(len(source), np.concatenate(edges))
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
    return Duplicates(
        groups,
        near_groups,
        exact,
        images.unreadable,
        images.sizes,
        images.notes,
        images.peaks,
    )


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


def dark_notes(duplicates: Duplicates) -> list[str]:
    """Return a note if no image has a pixel brighter than `MAX_DARK`; photographs have some."""
    most = duplicates.peaks.max(initial=0)
    if most > MAX_DARK or not duplicates.sizes.any():
        return []
    return [
        f"No pixel of any image is above {most} of 255: they are nearly black, as images from 0 to "
        f"1, or class maps, are when saved with 8 bits. Save them again, scaled to 0 to 255."
    ]


class _Images:
    """What is kept of each image when it is decoded; of an unreadable one, zeros."""

    def __init__(
        self, source: Source, *, near: bool, visit: Callable[[int], None] | None = None
    ) -> None:
        count = len(source)
        self._source, self._near, self._visit = source, near, visit
        self.digests = np.zeros(count, "V16")  # of shape and pixels; each unreadable one differs
        self.low = np.zeros((count if near else 0, 64), np.float32)  # frequencies
        self.thumbs = np.zeros((count if near else 0, THUMB_PX**2), np.uint8)
        self.comparable = np.zeros(count, bool)  # large enough for a perceptual hash
        self.sizes = np.zeros((count, 2), np.int32)
        self.notes: list[tuple[str, ...]] = [()] * count
        self.peaks = np.zeros(count, np.uint8)
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
        if self._visit is not None:
            self._visit(i)
        try:
            pixels, notes, _ = self._source.read(i)
        except DataError as error:
            self.digests[i] = np.void(i.to_bytes(16, "little"))
            return str(error)
        height, width = pixels.shape[:2]
        self.sizes[i] = width, height
        self.notes[i] = notes
        self.peaks[i] = pixels.max(initial=0)
        digest = hashlib.blake2b(f"{width}x{height}".encode(), digest_size=16)
        digest.update(np.ascontiguousarray(pixels).data)
        self.digests[i] = np.void(digest.digest())
        signature = image_signature(pixels) if self._near else None
        if signature is not None:
            self.low[i], self.thumbs[i] = signature
            self.comparable[i] = True
        return None


def _near_pairs(hashes: np.ndarray, thumbs: np.ndarray, threads: ThreadPoolExecutor) -> np.ndarray:
    """Return the pairs of near-duplicates, int64 (K, 2), by hashes (N,) and thumbnails (N, 256)."""
    num_rows = _BLOCK // min(max(len(hashes), 1), _COLUMNS)

    # Block by block: 200,000 images are 20 billion pairs of hashes, 16 s of one core.
    def search(starts: range) -> np.ndarray:
        candidates = []
        for start in starts:
            rows = hashes[start : start + num_rows, None]
            blocks = [
                _close(rows, hashes[None, i : i + _COLUMNS], i - start)
                for i in range(start, len(hashes), _COLUMNS)
            ]
            row, column, distance = np.concatenate(blocks, 1)
            order = np.lexsort((column, distance, row))  # nearest first in each row
            rank = np.arange(len(row)) - np.searchsorted(row[order], row[order])
            nearest = order[rank < _MAX_CANDIDATES]
            candidates.append(start + np.stack([row[nearest], column[nearest]], 1))
        pairs = np.concatenate(candidates)
        parts = (pairs[i : i + _MAX_PAIRS] for i in range(0, len(pairs), _MAX_PAIRS))
        matches = [part[is_near_duplicate(*thumbs[part.T])] for part in parts]
        return np.concatenate([np.zeros((0, 2), np.int64), *matches])

    starts = range(0, len(hashes), num_rows)
    tasks = [starts[i : i + _TASK_BLOCKS] for i in range(0, len(starts), _TASK_BLOCKS)]
    return np.concatenate([np.zeros((0, 2), np.int64), *threads.map(search, tasks)])


def _turned_pairs(low: np.ndarray, thumbs: np.ndarray, threads: ThreadPoolExecutor) -> np.ndarray:
    """Return the pairs of images that are near-duplicates once both are upright, int64 (K, 2)."""
    rows, turns = upright_turns(low)
    hashes, upright = np.zeros(len(rows), np.uint64), np.zeros((len(rows), THUMB_PX**2), np.uint8)
    for turn in range(TURNS):
        chosen = np.flatnonzero(turns == turn)
        hashes[chosen] = hash_frequencies(turn_frequencies(low[rows[chosen]], turn))
        upright[chosen] = turn_thumbs(thumbs[rows[chosen]], turn)
    pairs = _near_pairs(hashes, upright, threads)
    pairs = pairs[turns[pairs[:, 0]] != turns[pairs[:, 1]]]
    return rows[pairs[has_details(upright[pairs[:, 0]])]]


def _close(rows: np.ndarray, columns: np.ndarray, offset: int) -> np.ndarray:
    """Return (row, column, distance) of close hashes, int64 (3, K), each column after its row."""
    distances = np.bitwise_count(rows ^ columns)
    # Flat: a two-dimensional np.nonzero would take longer than everything else.
    row, column = np.divmod(np.flatnonzero(distances <= MAX_DISTANCE), distances.shape[1])
    later = column + offset > row
    row, column = row[later], column[later]
    return np.stack([row, column + offset, distances[row, column].astype(np.int64)])
