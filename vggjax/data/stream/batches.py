"""Decode a stream into batches by threads that run ahead, in memory that does not grow with it."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from vggjax.data.images.decode import DecodedImage
from vggjax.data.images.preprocess import Preprocessing, resize_image
from vggjax.data.loader import count_cores
from vggjax.errors import DataError

T = TypeVar("T")

_CHUNK = 8
"""Items to a thread at a time, which costs a tenth of decoding a small image."""

_MAX_WAITING = 512
"""Items that need no model, beside those of a batch that is not full yet."""


class StreamBatch(NamedTuple, Generic[T]):
    """Consecutive items of a stream, and the images of those that could be read."""

    images: np.ndarray
    """uint8 (B, S, S, 3); further rows are padding."""
    items: list[tuple[T, int | str | None]]
    """Each item with its row of `images`, why it has none, or None if none was wanted."""


def stream_batches(
    items: Iterable[T],
    read: Callable[[T], DecodedImage | None],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
) -> Iterator[StreamBatch[T]]:
    """Yield the items of a stream in batches, decoded and resized.

    Args:
        items: the stream, which is read a few items ahead of the threads.
        read: returns an item's image, called in threads; None if the item needs none; raises
            `DataError` with the reason if it cannot be read.
        preprocessing: its size and resize rule are applied.
        batch_size: B, a power of two; if there are fewer images, the next power of two.
    """
    size = preprocessing.image_size
    waiting: list[tuple[T, int | str | None]] = []
    rows: list[np.ndarray] = []
    has_full = False

    def batch() -> StreamBatch[T]:
        # Only powers of two, because every other number of rows is compiled.
        padded = batch_size if has_full else 1 << max(0, len(rows) - 1).bit_length()
        images = np.zeros((padded if rows else 0, size, size, 3), np.uint8)
        if rows:
            images[: len(rows)] = rows
        done = StreamBatch(images, waiting.copy())
        waiting.clear()
        rows.clear()
        return done

    for item, outcome in _decoded(items, read, preprocessing):
        if isinstance(outcome, np.ndarray):
            waiting.append((item, len(rows)))
            rows.append(outcome)
        else:
            waiting.append((item, outcome))
        if len(rows) == batch_size:
            has_full = True
            yield batch()
        elif len(waiting) - len(rows) >= _MAX_WAITING or (not rows and outcome is None):
            has_full |= bool(rows)
            yield batch()
    if waiting:
        yield batch()


def _decoded(
    items: Iterable[T],
    read: Callable[[T], DecodedImage | None],
    preprocessing: Preprocessing,
) -> Iterator[tuple[T, np.ndarray | str | None]]:
    """Yield each item with its resized image, why it cannot be read, or None, in order."""
    items = iter(items)
    num_threads = count_cores()

    def decode(chunk: list[T]) -> list[np.ndarray | str | None]:
        return [_decode(item, read, preprocessing) for item in chunk]

    pending: deque[tuple[list[T], Future]] = deque()
    with ThreadPoolExecutor(num_threads, "vggjax-decode") as threads:
        try:
            for chunk in iter(lambda: list(itertools.islice(items, _CHUNK)), []):
                pending.append((chunk, threads.submit(decode, chunk)))
                if len(pending) > 2 * num_threads:
                    done, future = pending.popleft()
                    yield from zip(done, future.result(), strict=True)
            while pending:
                done, future = pending.popleft()
                yield from zip(done, future.result(), strict=True)
        finally:
            threads.shutdown(wait=True, cancel_futures=True)


def _decode(
    item: T, read: Callable[[T], DecodedImage | None], preprocessing: Preprocessing
) -> np.ndarray | str | None:
    try:
        image = read(item)
        return None if image is None else resize_image(image.pixels, preprocessing)
    except DataError as error:
        return str(error)
