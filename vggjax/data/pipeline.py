"""Reads the examples of one split into batches, and runs ahead of whoever consumes them.

Out: {"images": uint8 (B, S, S, 3), "label": int32 (B,), "mask": float32 (B,), "index": int64 (B,)
into the source, -1 on padding}; always B rows. The order is a function of (seed, epoch), a batch
is a slice of it, and neither depends on the number of threads or on the cache. A picture that
cannot be read keeps its row, with mask 0: it is named and counted, not fatal. Shifting and scaling
to what the weights expect, and augmentation, happen later, on the device.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from vggjax.data.preprocess import Preprocessing, resize_image
from vggjax.data.source import Source
from vggjax.errors import ConfigError, DataError, shown

Batch = dict[str, np.ndarray]
T = TypeVar("T")

_CHUNK = 64  # pictures between two reports of progress


class Examples:
    """One split of a data set, resized, in batches.

    `unreadable` maps an index into the source to the reason; it fills while pictures are read.
    More of them than `max_unreadable`, a share of this split (one is always let pass, unless the
    share is 0), or every picture of a class that has two or more here, is a `DataError`.
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
        self._threads = num_threads or os.cpu_count() or 1
        self._max_unreadable = max_unreadable
        self._cache_bytes = cache_mb * 2**20
        self._cache: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def num_batches(self, batch_size: int) -> int:
        """Gives the batches of one epoch, the padded last one with them."""
        return -(-len(self) // batch_size)

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Decodes every picture once and keeps it, if they fit `cache_mb`; else does nothing.

        `progress` is called with (done, of) now and then, from this thread.
        """
        size = self.preprocessing.image_size
        if self._cache is not None or len(self) * size * size * 3 > self._cache_bytes:
            return
        cache = np.zeros((len(self), size, size, 3), np.uint8)
        done = 0
        for positions, images in self._decoded(_slices(np.arange(len(self)), _CHUNK)):
            cache[positions] = images
            done += len(positions)
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
    ) -> Iterator[Batch]:
        """Yields one epoch from batch `start` on: the batches that the whole epoch has there."""
        if batch_size < 1:
            raise ConfigError(f"--batch-size must be 1 or more; got {batch_size}.")
        order = np.arange(len(self))
        if shuffle:
            order = np.random.default_rng((seed, epoch)).permutation(len(self))
        slices = _slices(order[start * batch_size :], batch_size)
        if self._cache is None:
            decoded = self._decoded(slices)
        else:
            decoded = ((positions, self._cache[positions]) for positions in slices)
        for positions, images in decoded:
            yield self._batch(positions, images, batch_size)

    def _batch(self, positions: np.ndarray, images: np.ndarray, batch_size: int) -> Batch:
        count, padding = len(positions), batch_size - len(positions)
        index = self.indices[positions]
        readable = [int(i) not in self.unreadable for i in index]
        return {
            "images": np.concatenate([images, np.zeros((padding, *images.shape[1:]), np.uint8)])
            if padding
            else images,
            "label": np.pad(self.labels[positions], (0, padding)),
            "mask": np.pad(np.asarray(readable, np.float32), (0, batch_size - count)),
            "index": np.pad(index, (0, padding), constant_values=-1),
        }

    def _decoded(self, slices: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (positions, images) in order; the threads are one slice ahead, and end with it."""
        with ThreadPoolExecutor(self._threads, "vggjax-decode") as threads:
            try:
                ahead = None
                for positions in slices:
                    behind, ahead = ahead, self._start(threads, positions)
                    if behind is not None:
                        yield self._finish(*behind)
                if ahead is not None:
                    yield self._finish(*ahead)
            finally:
                threads.shutdown(wait=True, cancel_futures=True)

    def _start(
        self, threads: ThreadPoolExecutor, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, list[Future]]:
        size = self.preprocessing.image_size
        images = np.zeros((len(positions), size, size, 3), np.uint8)
        rows = zip(images, self.indices[positions], strict=True)
        return positions, images, [threads.submit(self._read_into, row, int(i)) for row, i in rows]

    def _read_into(self, row: np.ndarray, i: int) -> str | None:
        """Fills one row of a batch; gives the reason if it stays as it was."""
        if i in self.unreadable:
            return self.unreadable[i]
        try:
            row[:] = resize_image(self.source.read(i).pixels, self.preprocessing)
        except DataError as error:
            return str(error)
        return None

    def _finish(
        self, positions: np.ndarray, images: np.ndarray, futures: list[Future]
    ) -> tuple[np.ndarray, np.ndarray]:
        reasons = [future.result() for future in futures]
        new = {
            int(i): reason
            for i, reason in zip(self.indices[positions], reasons, strict=True)
            if reason is not None and int(i) not in self.unreadable
        }
        if new:
            self.unreadable.update(new)
            self._check_unreadable()
        return positions, images

    def _check_unreadable(self) -> None:
        bad = np.fromiter(self.unreadable, np.int64, len(self.unreadable))
        allowed = (
            max(1, int(self._max_unreadable * len(self) + 1e-9)) if self._max_unreadable else 0
        )
        some = "; ".join(
            f"{shown(self.source.ids[i])}: {reason}"
            for i, reason in list(self.unreadable.items())[:3]
        )
        if len(bad) > allowed:
            raise DataError(
                f"More than {self._max_unreadable:.0%} of the pictures cannot be read: at least "
                f"{len(bad)} of {len(self)} ({some}). Mend or delete them, or raise "
                f"--max-unreadable."
            )
        classes = len(self.source.class_names)
        here = np.bincount(self.labels, minlength=classes)
        lost = np.bincount(self.source.labels[bad], minlength=classes)
        for label in np.flatnonzero((here >= 2) & (lost == here)):
            raise DataError(
                f"No picture of class {self.source.class_names[label]!r} can be read: "
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


def _slices(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (order[at : at + size] for at in range(0, len(order), size))
