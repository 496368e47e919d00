"""Reading a split: its notes are counted once, and one that fits the memory is read once."""

import os
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from test_pipeline import SMALL, assert_same

from vggjax.data.images.decode import DecodedImage
from vggjax.data.loader import SplitLoader
from vggjax.data.sources.open import open_source
from vggjax.data.sources.source import Source

MODES = ("RGB", "L", "RGB", "CMYK", "1")


@pytest.fixture
def folder(tmp_path):
    """Twenty JPEGs and PNGs, a few of them not plain RGB, and a damaged one."""
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 256, (9 + i % 3, 11, 3), np.uint8)
        image = Image.fromarray(pixels).convert(MODES[i % 5])
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(f"{path}.png" if image.mode == "1" else f"{path}.jpg")
    damaged = tmp_path / "photos" / "a" / "00.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    return tmp_path / "photos"


def open_examples(folder, **options) -> SplitLoader:
    made = open_source(str(folder))
    return SplitLoader(made, np.arange(len(made)), SMALL, num_threads=3, **options)


@pytest.mark.parametrize("cache_mb", [0, 8])
def test_each_image_s_notes_are_counted_once_whatever_the_epochs(folder, cache_mb):
    split = open_examples(folder, cache_mb=cache_mb)
    split.prepare()
    assert split.adapted == (Counter() if cache_mb == 0 else {"gray made RGB": 8} | CMYK)
    for epoch in range(3):
        list(split.batches(6, epoch=epoch, shuffle=True))
        assert split.adapted == {"gray made RGB": 8} | CMYK
    assert len(split.unreadable) == 1


CMYK = {"CMYK made RGB": 4}


def test_a_image_of_two_notes_counts_for_both():
    def read(i: int) -> DecodedImage:
        return DecodedImage(np.zeros((8, 8, 3), np.uint8), ("one", "two")[: i % 3])

    made = Source("made", ("a", "b"), np.arange(9) % 2, [str(i) for i in range(9)], None, read, "")
    split = SplitLoader(made, np.arange(1, 9), SMALL, num_threads=2)
    list(split.batches(4))
    assert split.adapted == {"one": 6, "two": 3}


def test_a_split_that_fits_the_memory_never_touches_its_files_again(folder):
    plain = list(open_examples(folder, cache_mb=0).batches(6, shuffle=True))
    split = open_examples(folder)
    split.prepare()
    shutil.rmtree(folder)
    assert_same(split.batches(6, shuffle=True), plain)
    split.prepare()
    assert_same(split.batches(6, shuffle=True), plain)


def test_the_threads_are_as_many_as_the_cores_that_may_be_used(folder, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    made = open_source(str(folder))
    assert SplitLoader(made, np.arange(20), SMALL)._num_threads == 3
