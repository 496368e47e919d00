"""Reads the examples of one split into batches, and runs ahead of whoever consumes them.

Out: {"images": uint8 (B, S, S, 3), "label": int32 (B,), "mask": float32 (B,), "index": int64 (B,)
into the source, -1 on padding}; always B rows. The order is a function of (seed, epoch), a batch
is a slice of it, and neither depends on the number of threads or on the cache. An image that
cannot be read keeps its row, with mask 0: it is named and counted, not fatal. Shifting and scaling
to what the weights expect, and augmentation, happen later, on the device.

Of several processes each makes its own rows of every batch and reads no others'. Each judges by
itself what it cannot read; one that gives up has to end at once (sharding.leave), which ends all.
"""

import itertools
import os
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from vggjax.data.images.preprocess import Preprocessing, resize_image
from vggjax.data.order import epoch_order
from vggjax.data.sources.source import Source
from vggjax.errors import ConfigError, DataError, printable

Batch = dict[str, np.ndarray]
T = TypeVar("T")

_CHUNK = 64  # images between two reports of progress


class _Slice(NamedTuple):
    """Some images of the order, and where they are put: `images` may have rows beyond them."""

    positions: np.ndarray
    images: np.ndarray


class SplitLoader:
    """One split of a dataset, resized, in batches.

    `unreadable` maps an index into the source to the reason, and `adapted` counts the images
    behind each note of what had to be done to them; both fill while images are read.
    More of them than `max_unreadable`, a share of this split (one is always let pass, unless the
    share is 0), or every image of a class that has two or more here, is a `DataError`.
    """

    def __init__(
        self,
        source: Source,
        indices: np.ndarray,
        preprocessing: Preprocessing,
        *,
        cache_mb: int = 2048,
        num_threads: int | None = None,
        max_unreadable: float = 0.05,
    ) -> None:
        if num_threads is not None and num_threads < 1:
            raise ConfigError(f"--num-threads must be 1 or more; got {num_threads}.")
        if not 0 <= max_unreadable <= 1:
            raise ConfigError(f"--max-unreadable must lie between 0 and 1; got {max_unreadable:g}.")
        if cache_mb < 0:
            raise ConfigError(f"--cache-mb must be 0 (off) or more; got {cache_mb}.")
        self.source = source
        self.indices = np.asarray(indices, np.int64)
        self.labels = np.asarray(source.labels[self.indices], np.int32)
        self.preprocessing = preprocessing
        self.unreadable: dict[int, str] = {}
        self.adapted: Counter[str] = Counter()
        self._noted: set[int] = set()
        self._threads = num_threads or _count_cores()
        self._max_unreadable = max_unreadable
        self._cache_bytes = cache_mb * 2**20
        self._cache: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def num_batches(self, batch_size: int) -> int:
        """Gives the batches of one epoch, the padded last one with them."""
        return -(-len(self) // batch_size)

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Decodes every image once and keeps it, if they fit `cache_mb`; else does nothing.

        Then no file is opened again. Of several processes each keeps the whole split, since
        every epoch deals it out anew. `progress` is called with (done, of) now and then, from
        this thread.
        """
        size = self.preprocessing.image_size
        if self._cache is not None or len(self) * size * size * 3 > self._cache_bytes:
            return
        cache = np.empty((len(self), size, size, 3), np.uint8)
        positions = np.arange(len(self))
        starts = range(0, len(self), _CHUNK)
        slices = (_Slice(positions[at : at + _CHUNK], cache[at : at + _CHUNK]) for at in starts)
        done = 0
        for part in self._decoded(slices, _CHUNK):
            done += len(part.positions)
            if progress is not None:
                progress(done, len(self))
        self._cache = cache

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = False,
        start: int = 0,
        process: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Yields one epoch from batch `start` on: the batches that the whole epoch has there.

        `batch_size` is that of all processes together; `process` is which of how many this is,
        and the batches have its rows alone: the first of two has the first half of each.
        """
        if batch_size < 1:
            raise ConfigError(f"--batch-size must be 1 or more; got {batch_size}.")
        which, processes = process
        if batch_size % processes:
            raise ConfigError(
                f"--batch-size {batch_size} does not divide over {processes} processes; use a "
                f"multiple of {processes}."
            )
        order = epoch_order(len(self), seed=seed, epoch=epoch, shuffle=shuffle)
        rows = batch_size // processes
        starts = range(start * batch_size, len(self), batch_size)
        slices = (self._slice(order, at + which * rows, rows) for at in starts)
        filled = self._decoded(slices, rows) if self._cache is None else map(self._copied, slices)
        for part in filled:
            yield self._batch(*part)

    def _slice(self, order: np.ndarray, at: int, rows: int) -> _Slice:
        size = self.preprocessing.image_size
        part = _Slice(order[at : at + rows], _empty_images(rows, size))
        part.images[len(part.positions) :] = 0
        return part

    def _copied(self, part: _Slice) -> _Slice:
        rows = part.images[: len(part.positions)]
        np.take(self._cache, part.positions, axis=0, out=rows, mode="clip")  # copies only once
        return part

    def _batch(self, positions: np.ndarray, images: np.ndarray) -> Batch:
        padding = (0, len(images) - len(positions))
        index = self.indices[positions]
        mask = np.isin(index, list(self.unreadable), invert=True).astype(np.float32)
        return {
            "images": images,
            "label": np.pad(self.labels[positions], padding),
            "mask": np.pad(mask, padding),
            "index": np.pad(index, padding, constant_values=-1),
        }

    def _decoded(self, slices: Iterator[_Slice], rows: int) -> Iterator[_Slice]:
        """Yields the slices in order, filled; the threads are some ahead, and end with it."""
        ahead = 1 + max(1, -(-2 * self._threads // rows))  # enough to keep every thread busy
        pending: deque[tuple[_Slice, list[Future]]] = deque()
        with ThreadPoolExecutor(self._threads, "vggjax-decode") as threads:
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
        # A few images to each future, which costs as much as a tenth of a small image.
        indices = self.indices[part.positions].tolist()
        few = max(1, len(indices) // (4 * self._threads))
        return [
            threads.submit(self._fill, part.images[at : at + few], indices[at : at + few])
            for at in range(0, len(indices), few)
        ]

    def _fill(
        self, images: np.ndarray, indices: list[int]
    ) -> list[tuple[int, str | None, tuple[str, ...]]]:
        """Fills rows of a batch; gives (index, reason, notes) where there is something to say."""
        said = []
        for row, i in zip(images, indices, strict=False):  # rows beyond the indices are padding
            if i in self.unreadable:
                row[:] = 0
                continue
            try:
                image = self.source.read(i)
                resize_image(image.pixels, self.preprocessing, out=row)
            except DataError as error:
                row[:] = 0
                said.append((i, str(error), ()))
            else:
                if image.notes:
                    said.append((i, None, image.notes))
        return said

    def _finish(self, part: _Slice, futures: list[Future]) -> _Slice:
        found = len(self.unreadable)
        for i, reason, notes in itertools.chain.from_iterable(f.result() for f in futures):
            if reason is not None:
                self.unreadable[i] = reason
            elif i not in self._noted:
                self._noted.add(i)
                self.adapted.update(notes)
        if len(self.unreadable) > found:
            self._check_unreadable()
        return part

    def _check_unreadable(self) -> None:
        bad = np.fromiter(self.unreadable, np.int64, len(self.unreadable))
        allowed = (
            max(1, int(self._max_unreadable * len(self) + 1e-9)) if self._max_unreadable else 0
        )
        some = "; ".join(
            f"{printable(self.source.ids[i])}: {reason}"
            for i, reason in list(self.unreadable.items())[:3]
        )
        if len(bad) > allowed:
            raise DataError(
                f"More than {self._max_unreadable:.0%} of the images cannot be read: at least "
                f"{len(bad)} of {len(self)} ({some}). Mend or delete them, or raise "
                f"--max-unreadable."
            )
        classes = len(self.source.class_names)
        here = np.bincount(self.labels, minlength=classes)
        lost = np.bincount(self.source.labels[bad], minlength=classes)
        for label in np.flatnonzero((here >= 2) & (lost == here)):
            raise DataError(
                f"No image of class {self.source.class_names[label]!r} can be read: "
                f"{here[label]} of {here[label]} ({some}). Mend them, or take the class out."
            )


def prefetch(iterator: Iterator[Batch], put: Callable[[Batch], T], depth: int = 2) -> Iterator[T]:
    """Yields `put(item)` for each item, made by a thread that runs up to `depth` items ahead.

    What goes wrong there is raised here. Closing or dropping the generator ends the thread and
    closes `iterator`.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def offer(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            for item in iterator:
                if not offer((put(item), None)):
                    break
            offer((None, StopIteration()))
        except BaseException as error:
            offer((None, error))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    thread = threading.Thread(target=run, name="vggjax-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()


def _empty_images(rows: int, size: int) -> np.ndarray:
    """Allocates where jax.device_put on a CPU need not copy: at a multiple of 64 bytes."""
    count = rows * size * size * 3
    whole = np.empty(count + 64, np.uint8)
    first = -whole.ctypes.data % 64
    return whole[first : first + count].reshape(rows, size, size, 3)


def _count_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # what this process may use, of what there is
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
