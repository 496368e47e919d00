"""Decode and classify images as they come: threads decode, one thread runs the model.

    submit(bytes) -> decoders -> resized images that wait -> batches of few sizes -> probabilities

A batch takes what waits and never waits for more, so an idle service answers at once and a busy
one works in large batches. Its rows are a power of two, each compiled before the first request.
Everything held is counted, from `submit` until it has left, also of a request that was given up.
"""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from vggjax.data.images.decode import image_size, read_image
from vggjax.data.images.preprocess import resize_image
from vggjax.errors import DataError
from vggjax.evaluation.predict import MAX_BATCH, Classifier
from vggjax.serve.limits import Limits
from vggjax.training.step import MAX_MICROBATCH_PIXELS

Outcome: TypeAlias = np.ndarray | str
"""The probabilities (C,) of an image, or why it cannot be used."""

MAX_DECODERS = 8
"""Threads that decode; each may hold an image of the most pixels."""

_MAX_RETRY_S = 60
_SMOOTHING = 0.1  # of the time per image, per batch


@dataclass
class _Job:
    data: bytes
    num_bytes: int
    outcome: "Future[Outcome]" = field(default_factory=Future)
    pixels: np.ndarray | None = None


class Pipeline:
    """The way of images through a classifier; `submit` may be called from any thread."""

    def __init__(
        self,
        classifier: Classifier,
        limits: Limits,
        *,
        on_batch: Callable[[int, int, float], None] = lambda images, rows, seconds: None,
    ):
        """Prepare the threads, which `start` starts.

        Args:
            classifier: the model.
            limits: how much is held at once.
            on_batch: called after each batch with its images, its rows and its seconds.
        """
        self._classifier, self._limits, self._on_batch = classifier, limits, on_batch
        self._max_rows = _max_rows(classifier.info.preprocessing.image_size)
        threads = min(MAX_DECODERS, os.cpu_count() or 1)
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._worker = threading.Thread(target=self._run, name="classify", daemon=True)
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._is_closing = False
        self._held_images = self._held_bytes = 0
        self._seconds_per_image = 0.01

    @property
    def held_images(self) -> int:
        """Return the number of images that are decoded, wait, or are classified."""
        return self._held_images

    @property
    def retry_after_s(self) -> int:
        """Return after how many seconds what is held now will have left."""
        seconds = math.ceil(self._held_images * self._seconds_per_image)
        return min(max(1, seconds), _MAX_RETRY_S)

    def warm_up(self) -> None:
        """Compile the batches of each size.

        Raises:
            DataError: the model's outputs are not finite.
        """
        for rows in _sizes(self._max_rows):
            started = time.monotonic()
            self._classifier.classify_pixels(self._empty(rows))
            self._classifier.classify_pixels(self._empty(rows))
            self._seconds_per_image = (time.monotonic() - started) / 2 / rows

    def start(self) -> None:
        """Start the thread that runs the model."""
        self._worker.start()

    def close(self) -> None:
        """Answer what is held, then end the threads."""
        self._decoders.shutdown()
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._worker.join()

    def take(self, num_bytes: int) -> bool:
        """Count bytes of a request that is being read; return False where too many are held."""
        with self._changed:
            if self._held_bytes + num_bytes > self._limits.max_held_bytes:
                return False
            self._held_bytes += num_bytes
        return True

    def give_back(self, num_bytes: int) -> None:
        """Count bytes as gone that `take` counted."""
        with self._changed:
            self._held_bytes -= num_bytes

    def submit(self, images: Sequence[bytes]) -> "list[Future[Outcome]] | None":
        """Return the outcomes of encoded images, all to come; None where too many are held.

        An outcome that is canceled in time costs no further work.
        """
        jobs = [_Job(data, len(data)) for data in images]
        with self._changed:
            if self._held_images + len(jobs) > self._limits.max_queue:
                return None
            self._held_images += len(jobs)
            self._held_bytes += sum(job.num_bytes for job in jobs)
        for job in jobs:
            self._decoders.submit(self._decode, job)
        return [job.outcome for job in jobs]

    def _decode(self, job: _Job) -> None:
        data, job.data = job.data, b""
        if job.outcome.cancelled():
            self._leave(job)
            return
        try:
            job.pixels = self._pixels_of(data)
        except DataError as error:
            self._leave(job, str(error))
        except BaseException as error:
            self._leave(job, error)
        else:
            with self._changed:
                self._waiting.append(job)
                self._changed.notify()

    def _pixels_of(self, data: bytes) -> np.ndarray:
        width, height = image_size(data) or (0, 0)
        if width * height > (most := self._limits.max_megapixels * 1_000_000):
            raise DataError(f"too large: {width}x{height}, at most {most:,} pixels")
        preprocessing = self._classifier.info.preprocessing
        return resize_image(read_image(data, preprocessing.rendering).pixels, preprocessing)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                if not self._waiting:
                    return
                count = _batch_images(len(self._waiting), self._max_rows)
                jobs = [self._waiting.popleft() for _ in range(count)]
            wanted = []
            for job in jobs:
                if job.outcome.set_running_or_notify_cancel():
                    wanted.append(job)
                else:
                    self._leave(job)
            if wanted:
                self._classify(wanted)

    def _classify(self, jobs: list[_Job]) -> None:
        started = time.monotonic()
        batch = self._empty(1 << (len(jobs) - 1).bit_length())
        for row, job in enumerate(jobs):
            batch[row] = job.pixels
        try:
            probs = self._classifier.classify_pixels(batch)[: len(jobs)]
        except BaseException as error:
            for job in jobs:
                self._leave(job, error)
            return
        seconds = time.monotonic() - started
        self._seconds_per_image += _SMOOTHING * (seconds / len(jobs) - self._seconds_per_image)
        self._on_batch(len(jobs), len(batch), seconds)
        for job, row in zip(jobs, probs, strict=True):
            self._leave(job, row)

    def _leave(self, job: _Job, outcome: Outcome | BaseException | None = None) -> None:
        with self._changed:
            self._held_images -= 1
            self._held_bytes -= job.num_bytes
        if outcome is None:  # given up
            return
        if not (job.outcome.running() or job.outcome.set_running_or_notify_cancel()):
            return
        if isinstance(outcome, BaseException):
            job.outcome.set_exception(outcome)
        else:
            job.outcome.set_result(outcome)

    def _empty(self, rows: int) -> np.ndarray:
        size = self._classifier.info.preprocessing.image_size
        return np.zeros((rows, size, size, 3), np.uint8)


def _max_rows(image_size: int) -> int:
    """Return the most rows of a batch: on a CPU what one pass takes, beyond which nothing gains."""
    import jax

    if jax.default_backend() != "cpu":
        return MAX_BATCH
    rows = max(1, MAX_MICROBATCH_PIXELS // image_size**2)
    return min(MAX_BATCH, 1 << (rows.bit_length() - 1))


def _sizes(most: int) -> list[int]:
    """Return the powers of two up to `most`."""
    return [1 << power for power in range(most.bit_length())]


def _batch_images(waiting: int, most: int) -> int:
    """Return how many of the images that wait make a batch: at most a quarter of it is padding.

    Of 5 the first 4 are taken, and of 7 all, padded to 8.
    """
    if waiting >= most:
        return most
    rows = 1 << (waiting - 1).bit_length()
    return waiting if 4 * waiting >= 3 * rows else rows // 2
