"""Batches: the same whatever the threads, the cache or the start; none lost, no thread left."""

import os
import threading
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from support.batches import SMALL, assert_same_batches, make_loader, random_source

from vggjax.data.images.decode import DecodedImage
from vggjax.data.images.preprocess import Preprocessing, resize_image
from vggjax.data.loader import SplitLoader, prefetch
from vggjax.data.sources.open import open_source
from vggjax.data.sources.source import Source
from vggjax.errors import DataError


def counting(source: Source) -> tuple[Source, list[int]]:
    """Return the source, and a list to which it appends the index of every image that it reads."""
    reads: list[int] = []
    return Source(**{**vars(source), "read": lambda i: (reads.append(i), source.read(i))[1]}), reads


def loader_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("vggjax")]


# Batches


def test_seven_examples_at_batch_four_are_two_full_batches_with_a_mask():
    source = random_source(9)
    first, last = make_loader(source, np.arange(1, 8)).batches(4)
    assert first["index"].tolist() == [1, 2, 3, 4] and last["index"].tolist() == [5, 6, 7, -1]
    assert last["mask"].tolist() == [1, 1, 1, 0] and last["label"].tolist() == [2, 0, 1, 0]
    assert not last["images"][3].any()
    for row, i in enumerate(first["index"]):
        expected = resize_image(source.read(i).pixels, SMALL)
        np.testing.assert_array_equal(first["images"][row], expected)
    assert {name: (array.dtype, array.shape) for name, array in last.items()} == {
        "images": (np.uint8, (4, 8, 8, 3)),
        "label": (np.int32, (4,)),
        "mask": (np.float32, (4,)),
        "index": (np.int64, (4,)),
    }


@pytest.mark.parametrize(("batch_size", "expected"), [(1, 23), (4, 6), (23, 1), (100, 1)])
def test_an_epoch_holds_every_example_once(batch_size, expected):
    loader = make_loader(random_source())
    batches = list(loader.batches(batch_size, shuffle=True, seed=3))
    assert len(batches) == expected == loader.num_batches(batch_size)
    index = np.concatenate([b["index"] for b in batches])
    assert sorted(index[index >= 0]) == list(range(23))
    assert sum(b["mask"].sum() for b in batches) == 23


def test_the_order_is_numpy_s_permutation_by_seed_and_epoch():
    loader = make_loader(random_source(), np.arange(3, 20))
    orders = {}
    for seed, epoch in [(0, 0), (0, 1), (1, 0)]:
        (batch,) = loader.batches(17, seed=seed, epoch=epoch, shuffle=True)
        expected = 3 + np.random.default_rng((seed, epoch)).permutation(17)
        np.testing.assert_array_equal(batch["index"], expected)
        orders[seed, epoch] = batch["index"].tobytes()
    assert len(set(orders.values())) == 3
    (plain,) = loader.batches(17, seed=5)
    np.testing.assert_array_equal(plain["index"], np.arange(3, 20))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("num_threads", [2, 16])
def test_neither_threads_nor_the_cache_change_a_batch(num_threads, cached):
    source = random_source(bad={4, 11}, delay=True)
    loader = make_loader(source, num_threads=num_threads)
    if cached:
        loader.prepare()
    expected = make_loader(source, num_threads=1).batches(4, shuffle=True)
    assert_same_batches(loader.batches(4, shuffle=True), expected)


@pytest.mark.parametrize("cached", [True, False])
def test_a_start_continues_the_epoch_from_that_batch(cached):
    loader = make_loader(random_source(bad={2}), cache_mb=int(cached))
    loader.prepare()
    whole = list(loader.batches(4, seed=1, epoch=2, shuffle=True))
    for start in (0, 1, 5, 6, 9):
        rest = loader.batches(4, seed=1, epoch=2, shuffle=True, start=start)
        assert_same_batches(rest, whole[start:])


# The cache


def test_the_cache_changes_nothing_and_reads_each_image_once():
    source = random_source(bad={7})
    plain = list(make_loader(source, cache_mb=0).batches(4, shuffle=True))
    counted, reads = counting(source)
    loader = make_loader(counted)
    loader.prepare()
    loader.prepare()
    assert sorted(reads) == list(range(23))
    for _ in range(2):
        assert_same_batches(loader.batches(4, shuffle=True), plain)
    assert len(reads) == 23


def test_a_split_larger_than_the_bound_is_not_cached():
    counted, reads = counting(random_source(2000))
    SplitLoader(counted, np.arange(2000), Preprocessing(image_size=14), cache_mb=1).prepare()
    assert not reads  # 2,000 * 14 * 14 * 3 = 1.18 million bytes


def test_changing_a_batch_does_not_change_the_cache():
    loader = make_loader(random_source())
    loader.prepare()
    before = list(loader.batches(4))
    for batch in loader.batches(4):
        batch["images"][:] = 0
    assert_same_batches(loader.batches(4), before)


def test_progress_counts_up_to_all():
    calls = []
    make_loader(random_source(150)).prepare(lambda done, total: calls.append((done, total)))
    assert calls[-1] == (150, 150) and calls == sorted(calls) and len(calls) > 1


# Images that cannot be read


@pytest.mark.parametrize("cached", [True, False])
def test_an_unreadable_image_keeps_its_row_with_mask_0_and_is_tried_once(cached):
    counted, reads = counting(random_source(bad={3, 9}))
    loader = make_loader(counted, np.arange(1, 13), cache_mb=int(cached))
    loader.prepare()
    for _ in range(2):
        batches = list(loader.batches(5))
        assert loader.unreadable == {3: "truncated", 9: "truncated"}
        index, mask, images = (
            np.concatenate([b[name] for b in batches]) for name in ("index", "mask", "images")
        )
        np.testing.assert_array_equal(mask == 0, np.isin(index, [3, 9, -1]))
        assert not images[mask == 0].any() and images[mask == 1].any(axis=(1, 2, 3)).all()
    assert reads.count(3) == 1 and reads.count(4) == (1 if cached else 2)


def test_more_unreadable_images_than_the_share_are_fatal_and_named():
    bad = {0, 1, 5}
    with pytest.raises(DataError, match=r"More than 10%.*3 of 23.*c/0.jpg: truncated"):
        make_loader(random_source(bad=bad), max_unreadable=0.1).prepare()
    loader = make_loader(random_source(bad=bad), max_unreadable=3 / 23)
    loader.prepare()
    assert set(loader.unreadable) == bad


def test_one_unreadable_image_is_accepted_in_a_small_split_unless_none_is():
    source = random_source(6, bad={2})
    assert len(list(make_loader(source, max_unreadable=0.05).batches(4))) == 2
    with pytest.raises(DataError, match="More than 0%"):
        list(make_loader(source, max_unreadable=0).batches(4))


def test_a_class_without_a_readable_image_is_fatal():
    bad = {1, 4, 7, 10, 13, 16, 19, 22}  # all of class b
    with pytest.raises(DataError, match="No image of class 'b'"):
        list(make_loader(random_source(bad=bad), max_unreadable=1).batches(4))


def test_a_bug_while_reading_is_no_unreadable_image():
    def read(i: int) -> DecodedImage:
        raise ZeroDivisionError

    source = Source(**{**vars(random_source()), "read": read})
    with pytest.raises(ZeroDivisionError):
        list(make_loader(source).batches(4))
    assert not loader_threads()


# Files


@pytest.fixture
def folder(tmp_path):
    """Return a folder of twenty JPEGs and PNGs, some not RGB, a truncated and an empty one."""
    modes = ("RGB", "L", "RGB", "CMYK", "1")
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 256, (9 + i % 3, 11, 3), np.uint8)
        image = Image.fromarray(pixels).convert(modes[i % 5])
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(f"{path}.png" if image.mode == "1" else f"{path}.jpg")
    truncated = tmp_path / "photos" / "a" / "00.jpg"
    truncated.write_bytes(truncated.read_bytes()[:200])
    (tmp_path / "photos" / "b" / "05.jpg").write_bytes(b"")
    return tmp_path / "photos"


def open_loader(folder, **options) -> SplitLoader:
    source = open_source(str(folder))
    options = {"num_threads": 3, "max_unreadable": 0.1} | options
    return SplitLoader(source, np.arange(len(source)), SMALL, **options)


@pytest.mark.parametrize("cache_mb", [0, 8])
def test_each_image_s_notes_are_counted_once_whatever_the_epochs(folder, cache_mb):
    loader = open_loader(folder, cache_mb=cache_mb)
    loader.prepare()
    expected = {"gray made RGB": 8, "CMYK made RGB": 4}
    assert loader.adapted == (Counter() if cache_mb == 0 else expected)
    for epoch in range(3):
        batches = list(loader.batches(6, epoch=epoch, shuffle=True))
        assert loader.adapted == expected
        assert sum(b["mask"].sum() for b in batches) == 18
    names = {loader.source.ids[i]: reason for i, reason in loader.unreadable.items()}
    assert names == {"a/00.jpg": "truncated", "b/05.jpg": "empty file"}


def test_an_image_with_two_notes_counts_for_both():
    def read(i: int) -> DecodedImage:
        return DecodedImage(np.zeros((8, 8, 3), np.uint8), ("one", "two")[: i % 3])

    source = Source(**{**vars(random_source(9)), "read": read})
    loader = make_loader(source, np.arange(1, 9))
    list(loader.batches(4))
    assert loader.adapted == {"one": 6, "two": 3}


def test_there_are_as_many_threads_as_usable_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    barrier = threading.Barrier(3)  # passes once three threads wait at it

    def read(i: int) -> DecodedImage:
        barrier.wait(timeout=120)
        return DecodedImage(np.zeros((8, 8, 3), np.uint8))

    source = Source(**{**vars(random_source(12)), "read": read})
    assert len(list(make_loader(source, num_threads=None).batches(12))) == 1


# Threads


def test_no_thread_is_left_when_batches_are_abandoned():
    batches = make_loader(random_source()).batches(4)
    next(batches)
    assert loader_threads()
    batches.close()
    assert not loader_threads()


def test_prefetch_yields_the_same_in_the_same_order():
    loader = make_loader(random_source(delay=True))
    put = lambda batch: (batch["index"].tolist(), threading.current_thread().name)  # noqa: E731
    items = list(prefetch(loader.batches(4, shuffle=True), put))
    expected = [b["index"].tolist() for b in loader.batches(4, shuffle=True)]
    assert [index for index, _ in items] == expected
    assert {name for _, name in items} == {"vggjax-prefetch_0"}
    assert not loader_threads()


@pytest.mark.parametrize("depth", [1, 5])
def test_prefetch_runs_ahead_by_its_depth(depth):
    made = []
    items = prefetch(iter(range(50)), lambda item: made.append(item) or item, depth)
    assert next(items) == 0
    deadline = time.monotonic() + 120
    while len(made) < 1 + depth and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 1 + depth  # one is consumed
    items.close()
    assert not loader_threads()


def test_an_exception_in_the_thread_is_raised_to_the_consumer():
    source = random_source(bad={0, 1, 2, 3})
    with pytest.raises(DataError, match="cannot be read"):
        list(prefetch(make_loader(source, max_unreadable=0.01).batches(4), lambda batch: batch))
    with pytest.raises(KeyError):
        list(prefetch(make_loader(random_source()).batches(4), lambda batch: batch["nothing"]))
    assert not loader_threads()


def test_a_prefetch_that_is_dropped_or_never_started_leaves_no_thread():
    batches = prefetch(make_loader(random_source()).batches(4), lambda batch: batch)
    assert not loader_threads()
    next(batches)
    assert loader_threads()
    del batches
    assert not loader_threads()
    prefetch(make_loader(random_source()).batches(4), lambda batch: batch).close()
    assert not loader_threads()
