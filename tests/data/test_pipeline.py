"""Batches: the same whatever the threads, the cache or the start; none lost, no thread left."""

import threading
import time

import numpy as np
import pytest
from PIL import Image

from vggjax.data.images.decode import DecodedImage
from vggjax.data.images.preprocess import Preprocessing, resize_image
from vggjax.data.loader import SplitLoader, prefetch
from vggjax.data.sources.open import open_source
from vggjax.data.sources.source import Source
from vggjax.errors import ConfigError, DataError

SMALL = Preprocessing(image_size=8)


def source(count=23, classes=3, bad=(), delay=False) -> Source:
    """Random images of several sizes; those in `bad` cannot be read."""

    def read(i: int) -> DecodedImage:
        if delay:  # the later ones first, so that order by arrival would show
            time.sleep((i * 7 % 5) * 0.002)
        if i in bad:
            raise DataError("truncated")
        rng = np.random.default_rng(i)
        return DecodedImage(rng.integers(0, 256, (5 + i % 4, 9, 3), np.uint8))

    return Source(
        name="made",
        class_names=tuple("abcdefg"[:classes]),
        labels=(np.arange(count) % classes).astype(np.int32),
        ids=[f"c/{i}.jpg" for i in range(count)],
        splits=None,
        read=read,
        fingerprint="",
    )


def examples(made: Source, indices=None, **options) -> SplitLoader:
    options = {"num_threads": 2, "max_unreadable": 0.5} | options
    indices = np.arange(len(made)) if indices is None else indices
    return SplitLoader(made, indices, SMALL, **options)


def assert_same(batches, others) -> None:
    batches, others = list(batches), list(others)
    assert len(batches) == len(others)
    for a, b in zip(batches, others, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


def threads_of_ours() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("vggjax")]


def test_seven_examples_at_batch_four_are_two_full_batches_with_a_mask():
    made = source(9)
    first, last = examples(made, np.arange(1, 8)).batches(4)
    assert first["index"].tolist() == [1, 2, 3, 4] and last["index"].tolist() == [5, 6, 7, -1]
    assert last["mask"].tolist() == [1, 1, 1, 0] and last["label"].tolist() == [2, 0, 1, 0]
    assert not last["images"][3].any()
    for row, i in enumerate(first["index"]):
        np.testing.assert_array_equal(
            first["images"][row], resize_image(made.read(i).pixels, SMALL)
        )
    found = {name: (array.dtype, array.shape) for name, array in last.items()}
    assert found == {
        "images": (np.uint8, (4, 8, 8, 3)),
        "label": (np.int32, (4,)),
        "mask": (np.float32, (4,)),
        "index": (np.int64, (4,)),
    }


@pytest.mark.parametrize(("batch_size", "expected"), [(1, 23), (4, 6), (23, 1), (100, 1)])
def test_an_epoch_holds_every_example_once(batch_size, expected):
    split = examples(source())
    batches = list(split.batches(batch_size, shuffle=True, seed=3))
    assert len(batches) == expected == split.num_batches(batch_size)
    index = np.concatenate([b["index"] for b in batches])
    assert sorted(index[index >= 0]) == list(range(23))
    assert sum(b["mask"].sum() for b in batches) == 23


def test_the_order_is_numpy_s_permutation_by_seed_and_epoch():
    split = examples(source(), np.arange(3, 20))
    order = {
        key: np.concatenate(
            [b["index"] for b in split.batches(17, seed=key[0], epoch=key[1], shuffle=True)]
        )
        for key in [(0, 0), (0, 1), (1, 0)]
    }
    for key, found in order.items():
        np.testing.assert_array_equal(found, 3 + np.random.default_rng(key).permutation(17))
    assert len({found.tobytes() for found in order.values()}) == 3
    (plain,) = split.batches(17, seed=5)
    np.testing.assert_array_equal(plain["index"], np.arange(3, 20))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("num_threads", [2, 7, 16])
def test_neither_threads_nor_the_cache_change_a_batch(num_threads, cached):
    made = source(bad={4, 11}, delay=True)
    split = examples(made, num_threads=num_threads)
    if cached:
        split.prepare()
    assert_same(
        examples(made, num_threads=1).batches(4, shuffle=True), split.batches(4, shuffle=True)
    )


@pytest.mark.parametrize("start", [0, 1, 4, 5, 6, 9])
@pytest.mark.parametrize("cached", [True, False])
def test_a_start_gives_what_the_whole_epoch_has_from_there_on(start, cached):
    split = examples(source(bad={2}), cache_mb=1 if cached else 0)
    split.prepare()
    whole = list(split.batches(4, seed=1, epoch=2, shuffle=True))
    assert_same(split.batches(4, seed=1, epoch=2, shuffle=True, start=start), whole[start:])


def test_the_cache_changes_nothing_and_reads_each_image_once():
    made, reads = source(bad={7}), []
    plain = list(examples(made, cache_mb=0).batches(4, shuffle=True))
    counted = Source(**{**vars(made), "read": lambda i: (reads.append(i), made.read(i))[1]})
    cached = examples(counted)
    cached.prepare()
    cached.prepare()
    assert sorted(reads) == list(range(23))
    for _ in range(2):
        assert_same(cached.batches(4, shuffle=True), plain)
    assert len(reads) == 23


def test_a_set_that_does_not_fit_the_bound_is_not_cached():
    made, reads = source(2000), []
    counted = Source(**{**vars(made), "read": lambda i: (reads.append(i), made.read(i))[1]})
    SplitLoader(counted, np.arange(2000), Preprocessing(image_size=14), cache_mb=1).prepare()
    assert not reads  # 2,000 * 14 * 14 * 3 = 1.18 million bytes


def test_changing_a_batch_does_not_change_the_cache():
    split = examples(source())
    split.prepare()
    before = list(split.batches(4))
    for batch in split.batches(4):
        batch["images"][:] = 0
    assert_same(split.batches(4), before)


def test_progress_counts_up_to_all():
    seen = []
    examples(source(150)).prepare(lambda done, of: seen.append((done, of)))
    assert seen[-1] == (150, 150) and seen == sorted(seen) and len(seen) > 1


@pytest.mark.parametrize("cached", [True, False])
def test_an_unreadable_image_keeps_its_row_and_is_named(cached):
    split = examples(source(bad={3, 9}), np.arange(1, 13), cache_mb=int(cached))
    split.prepare()
    batches = list(split.batches(5))
    assert split.unreadable == {3: "truncated", 9: "truncated"}
    index = np.concatenate([b["index"] for b in batches])
    mask = np.concatenate([b["mask"] for b in batches])
    images = np.concatenate([b["images"] for b in batches])
    np.testing.assert_array_equal(mask == 0, np.isin(index, [3, 9, -1]))
    assert not images[mask == 0].any() and images[mask == 1].any(axis=(1, 2, 3)).all()


def test_an_unreadable_image_is_tried_once():
    made, reads = source(bad={3}), []
    counted = Source(**{**vars(made), "read": lambda i: (reads.append(i), made.read(i))[1]})
    split = examples(counted, cache_mb=0)
    assert_same(split.batches(4), split.batches(4))
    assert reads.count(3) == 1 and reads.count(4) == 2


def test_more_unreadable_images_than_the_share_are_fatal_and_named():
    bad = {0, 1, 5}
    with pytest.raises(DataError, match=r"More than 10%.*3 of 23.*c/0.jpg: truncated"):
        examples(source(bad=bad), max_unreadable=0.1).prepare()
    split = examples(source(bad=bad), max_unreadable=3 / 23)
    split.prepare()
    assert set(split.unreadable) == bad


def test_one_unreadable_image_passes_in_a_small_split_unless_none_may():
    assert len(list(examples(source(6, bad={2}), max_unreadable=0.05).batches(4))) == 2
    with pytest.raises(DataError, match="More than 0%"):
        list(examples(source(6, bad={2}), max_unreadable=0).batches(4))


def test_a_class_without_a_readable_image_is_fatal():
    bad = {1, 4, 7, 10, 13, 16, 19, 22}  # all of class b
    with pytest.raises(DataError, match="No image of class 'b'"):
        list(examples(source(bad=bad), max_unreadable=1).batches(4))


def test_a_folder_with_damaged_images_goes_through(tmp_path):
    for i in range(40):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "ab"[i % 2] / f"{i:02d}.png")
    whole = tmp_path / "a" / "00.png"
    whole.write_bytes(whole.read_bytes()[:500])
    (tmp_path / "b" / "01.png").write_bytes(b"")
    made = open_source(str(tmp_path))
    split = SplitLoader(made, np.arange(40), SMALL, num_threads=3)
    assert sum(b["mask"].sum() for b in split.batches(16)) == 38
    reasons = {made.ids[i]: reason for i, reason in split.unreadable.items()}
    assert reasons == {"a/00.png": "truncated", "b/01.png": "empty file"}


def test_a_bug_while_reading_is_no_unreadable_image():
    def read(i: int) -> DecodedImage:
        raise ZeroDivisionError

    made = Source(**{**vars(source()), "read": read})
    with pytest.raises(ZeroDivisionError):
        list(examples(made).batches(4))
    assert not threads_of_ours()


def test_no_thread_is_left_when_batches_are_abandoned():
    batches = examples(source()).batches(4)
    next(batches)
    assert threads_of_ours()
    batches.close()
    assert not threads_of_ours()


def test_prefetch_yields_the_same_in_the_same_order():
    split = examples(source(delay=True))
    put = lambda batch: (batch["index"].tolist(), threading.current_thread().name)  # noqa: E731
    found = list(prefetch(split.batches(4, shuffle=True), put))
    assert [index for index, _ in found] == [
        b["index"].tolist() for b in split.batches(4, shuffle=True)
    ]
    assert {name for _, name in found} == {"vggjax-prefetch"}
    assert not threads_of_ours()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_prefetch_runs_ahead_and_no_further_than_told(depth):
    made = []
    items = prefetch(iter(range(50)), lambda item: made.append(item) or item, depth)
    assert next(items) == 0
    time.sleep(0.3)
    # One was taken, `depth` are ready, and the thread holds one more for which there is no room.
    assert len(made) == depth + 2
    items.close()
    assert not threads_of_ours()


def test_an_exception_in_the_thread_is_raised_where_the_items_are_consumed():
    made = source(bad={0, 1, 2, 3})
    with pytest.raises(DataError, match="cannot be read"):
        list(prefetch(examples(made, max_unreadable=0.01).batches(4), lambda batch: batch))
    with pytest.raises(KeyError):
        list(prefetch(examples(source()).batches(4), lambda batch: batch["nothing"]))
    assert not threads_of_ours()


def test_dropping_a_prefetch_ends_its_threads():
    batches = prefetch(examples(source()).batches(4), lambda batch: batch)
    next(batches)
    assert threads_of_ours()
    del batches
    assert not threads_of_ours()


def test_a_prefetch_that_is_never_started_starts_no_thread():
    batches = prefetch(examples(source()).batches(4), lambda batch: batch)
    assert not threads_of_ours()
    batches.close()


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"num_threads": 0}, "`num_threads`"),
        ({"max_unreadable": 1.5}, "`max_unreadable`"),
        ({"cache_mb": -1}, "`cache_mb`"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_flag(options, flag):
    with pytest.raises(ConfigError, match=flag):
        examples(source(), **options)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ConfigError, match="`batch_size`"):
        list(examples(source()).batches(0))
