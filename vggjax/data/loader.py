"""Read the examples of one split into batches, ahead of their consumer.

Out: {"images": uint8 (B, S, S, 3), "label": int32 (B,), or bool (B, C) of several labels per image,
"mask": float32 (B,), "index": int64 (B,) into the source, -1 on padding}; always B rows. The order
is a function of (seed, epoch), a batch is a slice of it, whatever the threads and the cache. An
image that cannot be read keeps its row, with mask 0, and is counted. Preprocessing and augmentation
follow on the device.

With several processes, each reads and judges only its own rows of every batch. One that gives up
must exit at once (`exit_process`), which ends all. Every device gets as many rows as any
other: a batch that does not divide is padded, as the last one is.
"""

import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from vggjax.data.images.preprocess import Preprocessing, resize_image
from vggjax.data.sources.source import Source
from vggjax.errors import DataError, printable

Batch = dict[str, np.ndarray]
S = TypeVar("S")
T = TypeVar("T")

_Remark = tuple[int, str | None, tuple[str, ...]]  # index, why it is unreadable, notes

_CHUNK = 64  # images between two progress reports


class _Slice(NamedTuple):
    """Positions in the split, and where their images go: `images` may have further rows."""

    positions: np.ndarray
    images: np.ndarray


@dataclass(frozen=True)
class Process:
    """One of the `count` processes of a run, whose rows of a batch are a multiple of `multiple`."""

    index: int = 0
    count: int = 1
    multiple: int = 1
    devices: int = 1
    """The number of its devices, which have equal shares of its rows."""

    def rows(self, batch_size: int) -> range:
        """Return this process' rows of a batch; those from `batch_size` on are padding."""
        number = -(-batch_size // (self.count * self.multiple)) * self.multiple
        return range(self.index * number, (self.index + 1) * number)

    def part(self, first: int, batch_size: int) -> slice:
        """Return the examples of a batch that begins at `first` which are this process' own."""
        rows = self.rows(batch_size)
        return slice(first + min(rows.start, batch_size), first + min(rows.stop, batch_size))


ALONE = Process()
"""The only process of a run, on one device."""


class SplitLoader:
    """One split of a dataset, resized, in batches.

    `unreadable` maps an index into the source to the reason, and `adapted` counts the images behind
    each note of the decoder; both fill while images are read.

    Args:
        source: the dataset.
        indices: (N,) into the source, the examples of this split.
        preprocessing: its size and resize rule are applied here.
        cache_mb: `prepare` keeps the split in memory if it takes no more.
        num_threads: threads that decode; None is one for each core.
        max_unreadable: the share of unreadable images that is accepted (one always is, unless it is
            0). More, or every image of a class that has two or more here, is a `DataError`. None
            accepts any number.
    """

    def __init__(
        self,
        source: Source,
        indices: np.ndarray,
        preprocessing: Preprocessing,
        *,
        cache_mb: int = 2048,
        num_threads: int | None = None,
        max_unreadable: float | None = 0.05,
    ) -> None:
        self.source = source
        self.indices = np.asarray(indices, np.int64)
        labels = source.labels.astype(np.int32) if source.targets is None else source.targets
        self.labels = labels[self.indices]
        self.preprocessing = preprocessing
        self.unreadable: dict[int, str] = {}
        self.adapted: Counter[str] = Counter()
        self._noted: set[int] = set()
        self._num_threads = num_threads or count_cores()
        self._max_unreadable = max_unreadable
        self._cache_bytes = cache_mb * 2**20
        self._cache: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in an epoch, the padded last one included."""
        return -(-len(self) // batch_size)

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Decode every image once and keep it, if all fit `cache_mb`; else do nothing.

        With several processes, each keeps the whole split, since every epoch distributes it anew.
        `progress(done, total)` is called from this thread after every few images.
        """
        size = self.preprocessing.image_size
        if self._cache is not None or len(self) * size * size * 3 > self._cache_bytes:
            return
        cache = np.empty((len(self), size, size, 3), np.uint8)
        positions = np.arange(len(self))
        starts = range(0, len(self), _CHUNK)
        slices = (_Slice(positions[i : i + _CHUNK], cache[i : i + _CHUNK]) for i in starts)
        for part in self._decoded(slices, _CHUNK):
            if progress is not None:
                progress(int(part.positions[-1]) + 1, len(self))
        self._cache = cache

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = False,
        start: int = 0,
        process: Process = ALONE,
    ) -> Iterator[Batch]:
        """Yield the batches of an epoch, from batch number `start` on.

        `batch_size` counts the images of all processes; the batches hold only the rows of
        `process`: the first of two has the first half of each.
        """
        order = epoch_order(len(self), seed=seed, epoch=epoch, shuffle=shuffle)
        rows = len(process.rows(batch_size))
        starts = range(start * batch_size, len(self), batch_size)
        slices = (self._slice(order[process.part(first, batch_size)], rows) for first in starts)
        filled = self._decoded(slices, rows) if self._cache is None else map(self._copied, slices)
        for part in filled:
            yield self._batch(*part)

    def _slice(self, positions: np.ndarray, rows: int) -> _Slice:
        part = _Slice(positions, _empty_images(rows, self.preprocessing.image_size))
        part.images[len(part.positions) :] = 0
        return part

    def _copied(self, part: _Slice) -> _Slice:
        assert self._cache is not None
        rows = part.images[: len(part.positions)]
        np.take(self._cache, part.positions, axis=0, out=rows, mode="clip")  # without a buffer
        return part

    def _batch(self, positions: np.ndarray, images: np.ndarray) -> Batch:
        index = self.indices[positions]
        mask = np.isin(index, list(self.unreadable), invert=True).astype(np.float32)
        return {"images": images} | pad_rows(self.labels[positions], mask, index, len(images))

    def _decoded(self, slices: Iterator[_Slice], rows: int) -> Iterator[_Slice]:
        """Yield the slices in order, filled by threads that run ahead and end with the iterator."""
        ahead = 1 + max(1, -(-2 * self._num_threads // rows))  # enough to keep every thread busy
        pending: deque[tuple[_Slice, list[Future]]] = deque()
        with ThreadPoolExecutor(self._num_threads, "vggjax-decode") as threads:
            try:
                for part in slices:
                    pending.append((part, self._start(threads, part)))
                    if len(pending) == ahead:
                        yield self._finish(*pending.popleft())
                while pending:
                    yield self._finish(*pending.popleft())
            finally:
                threads.shutdown(wait=True, cancel_futures=True)

    def _start(self, threads: ThreadPoolExecutor, part: _Slice) -> list[Future]:
        # Several images to each future, which costs a tenth of decoding a small image.
        indices = self.indices[part.positions].tolist()
        count = max(1, len(indices) // (4 * self._num_threads))
        return [
            threads.submit(self._fill, part.images[i : i + count], indices[i : i + count])
            for i in range(0, len(indices), count)
        ]

    def _fill(self, images: np.ndarray, indices: list[int]) -> list[_Remark]:
        """Fill rows of a batch; return remarks on unreadable or adapted images."""
        remarks: list[_Remark] = []
        for row, index in zip(images, indices, strict=False):  # further rows are padding
            if index in self.unreadable:
                row[:] = 0
                continue
            try:
                image = self.source.read(index)
                resize_image(image.pixels, self.preprocessing, out=row)
                remarks.append((index, None, image.notes))
            except DataError as error:
                row[:] = 0
                remarks.append((index, str(error), ()))
        return remarks

    def _finish(self, part: _Slice, futures: list[Future]) -> _Slice:
        num_unreadable = len(self.unreadable)
        for index, reason, notes in itertools.chain.from_iterable(f.result() for f in futures):
            if reason is not None:
                self.unreadable[index] = reason
            elif notes and index not in self._noted:
                self._noted.add(index)
                self.adapted.update(notes)
        if len(self.unreadable) > num_unreadable and self._max_unreadable is not None:
            self._check_unreadable(self._max_unreadable)
        return part

    def _check_unreadable(self, share: float) -> None:
        bad = np.fromiter(self.unreadable, np.int64, len(self.unreadable))
        allowed = max(1, int(share * len(self) + 1e-9)) if share else 0
        first = itertools.islice(self.unreadable.items(), 3)
        examples = "; ".join(f"{printable(self.source.ids[i])}: {reason}" for i, reason in first)
        if len(bad) > allowed:
            raise DataError(
                f"More than {share:.0%} of the images of a split cannot be read: at least "
                f"{len(bad)} of {len(self)} ({examples}). Repair or delete them, or raise "
                f"`max_unreadable`."
            )
        counts, lost = self.source.class_counts(self.indices), self.source.class_counts(bad)
        for label in np.flatnonzero((counts >= 2) & (lost == counts)):
            raise DataError(
                f"No image of class {self.source.class_names[label]!r} can be read: "
                f"{counts[label]} of {counts[label]} ({examples}). Repair them or drop the class."
            )


def pad_rows(label: np.ndarray, mask: np.ndarray, index: np.ndarray, rows: int) -> Batch:
    """Return the part of a batch beside its images, padded to `rows` rows."""
    padding = rows - len(index)
    return {
        "label": np.pad(label, [(0, padding), *[(0, 0)] * (label.ndim - 1)]),
        "mask": np.pad(mask, (0, padding)),
        "index": np.pad(index, (0, padding), constant_values=-1),
    }


def epoch_order(length: int, *, seed: int = 0, epoch: int = 0, shuffle: bool = False) -> np.ndarray:
    """Return the order in which an epoch visits a split: positions, int64 (length,)."""
    if not shuffle:
        return np.arange(length)
    return np.random.default_rng((seed, epoch)).permutation(length)


def prefetch(
    iterator: Iterator[S], put: Callable[[S], T], depth: int = 2
) -> Generator[T, None, None]:
    """Yield `put(item)` for each item, from a thread that runs up to `depth` items ahead.

    Exceptions of the thread are raised here. Closing or dropping the generator ends the thread and
    closes `iterator`.
    """
    thread = ThreadPoolExecutor(1, "vggjax-prefetch")

    def put_next() -> T:
        return put(next(iterator))

    try:
        pending = deque(thread.submit(put_next) for _ in range(depth))
        while True:
            try:
                item = pending.popleft().result()
            except StopIteration:
                return
            pending.append(thread.submit(put_next))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
        if hasattr(iterator, "close"):
            iterator.close()


def _empty_images(rows: int, size: int) -> np.ndarray:
    """Allocate at a multiple of 64 bytes, so that jax.device_put on a CPU need not copy."""
    count = rows * size * size * 3
    whole = np.empty(count + 64, np.uint8)
    first = -whole.ctypes.data % 64
    return whole[first : first + count].reshape(rows, size, size, 3)


def count_cores() -> int:
    """Count the cores that this process may use, where the system can tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
