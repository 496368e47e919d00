"""Random datasets, and the comparison of their batches."""

import time

import numpy as np

from vggjax.data.images.decode import DecodedImage
from vggjax.data.images.preprocess import Preprocessing
from vggjax.data.loader import SplitLoader
from vggjax.data.sources.source import Source
from vggjax.errors import DataError

SMALL = Preprocessing(image_size=8)


def random_source(count: int = 23, classes: int = 3, *, bad=(), delay: bool = False) -> Source:
    """Return random images of several sizes; those in `bad` cannot be read.

    With `delay` they are not read in order, so that an order by arrival would show.
    """

    def read(i: int) -> DecodedImage:
        if delay:
            time.sleep((i * 7 % 5) * 0.002)
        if i in bad:
            raise DataError("truncated")
        rng = np.random.default_rng(i)
        return DecodedImage(rng.integers(0, 256, (5 + i % 4, 9, 3), np.uint8))

    return Source(
        name="random",
        class_names=tuple("abcdefg"[:classes]),
        labels=(np.arange(count) % classes).astype(np.int32),
        ids=[f"c/{i}.jpg" for i in range(count)],
        splits=None,
        read=read,
        fingerprint="",
    )


def make_loader(source: Source, indices=None, **options) -> SplitLoader:
    """Return a loader of 8 px images with two threads, which accepts half of them unreadable."""
    options = {"num_threads": 2, "max_unreadable": 0.5} | options
    indices = np.arange(len(source)) if indices is None else indices
    return SplitLoader(source, indices, SMALL, **options)


def assert_same_batches(batches, expected) -> None:
    """Assert that two iterables of batches are equal, dtypes included."""
    batches, expected = list(batches), list(expected)
    assert len(batches) == len(expected)
    for a, b in zip(batches, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])
