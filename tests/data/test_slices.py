"""Splits by slices: the examples that tfds selects, without overlap."""

import dataclasses

import numpy as np
import pytest
from support.made_source import source

from vggjax.data.splits.splits import SPLITS, make_splits, parse_split
from vggjax.errors import ConfigError, DataError

OFFICIAL = {"train": np.arange(200), "val": np.arange(200, 240), "test": np.arange(240, 300)}


@pytest.fixture(scope="module")
def plain():
    return source([100, 100, 100])


@pytest.fixture(scope="module")
def official():
    return source([100, 100, 100], OFFICIAL)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("train[:70%],train[70%:85%],train[85%:]", [(0, 210), (210, 255), (255, 300)]),
        (" train[:200] , train[200:250], train[-50:] ", [(0, 200), (200, 250), (250, 300)]),
        ("train[:-60%],train[40%:60%],train[-40%:]", [(0, 120), (120, 180), (180, 300)]),
        ("train[50%:],train[:20%],train[20%:50%]", [(150, 300), (0, 60), (60, 150)]),
    ],
)
def test_slices_follow_the_order_of_the_dataset(plain, text, ends):
    splits = make_splits(plain, parse_split(text), seed=3)
    for name, (start, end) in zip(SPLITS, ends, strict=True):
        np.testing.assert_array_equal(splits[name], np.arange(start, end))


def test_slices_of_official_splits_may_be_joined(official):
    splits = make_splits(official, parse_split("train[:25%]+train[-25%:]+val[:50%],val[50%:],test"))
    np.testing.assert_array_equal(splits["train"], [*range(50), *range(150, 200), *range(200, 220)])
    np.testing.assert_array_equal(splits["val"], np.arange(220, 240))
    np.testing.assert_array_equal(splits["test"], np.arange(240, 300))


def test_val_is_accepted_under_each_of_its_names(official):
    for name in ("val", "validation", "valid"):
        splits = make_splits(official, parse_split(f"train[:50%],{name},test"))
        np.testing.assert_array_equal(splits["val"], OFFICIAL["val"])


def test_of_two_slices_the_second_is_test_and_val_is_split_off_the_first(plain):
    splits = make_splits(plain, parse_split("train[:90%],train[90%:]"), seed=3)
    np.testing.assert_array_equal(splits["test"], np.arange(270, 300))
    np.testing.assert_array_equal(
        np.sort(np.concatenate([splits["train"], splits["val"]])), np.arange(270)
    )
    counts = np.bincount(plain.labels[splits["val"]])
    assert (np.abs(counts - np.bincount(plain.labels[:270]) / 9) < 1).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train[:70%],train[:30%]", r"\(train\) and train\[:30%\] \(test\) overlap; .* both: 90"),
        ("train[:50%],train[50%:80%],train[299:]+train[79%:80%]", "overlap; images in both: 3"),
        ("train[:50%]+train[40%:60%],train[60%:]", r"'train\[:50%\]\+.* selects images twice: 30"),
        ("train[:50%],train[50%:50%],train[60%:]", "is empty; the dataset has train 300"),
        ("train[80%:20%],train[:10%]", "is empty"),
        ("train[:400],train[:10]", "does not fit made: .*300 examples"),
        ("train,test", "Unknown split in `split` 'test'.*no official splits: slice train"),
    ],
)
def test_slices_that_do_not_fit_the_dataset_are_refused(plain, text, words):
    with pytest.raises(DataError, match=words) as error:
        make_splits(plain, parse_split(text))
    assert "\n" not in str(error.value)


def test_an_unknown_split_suggests_the_nearest_name(official):
    with pytest.raises(DataError, match="'tests'. Did you mean 'test'. Choices: train, val, test"):
        make_splits(official, parse_split("train,val,tests"))


def test_a_slice_without_one_of_the_classes_is_refused(plain):
    in_order = dataclasses.replace(plain, labels=np.sort(plain.labels))
    with pytest.raises(DataError, match="Class 'a' is not in every split: .*test 0"):
        make_splits(in_order, parse_split("train[:80%],train[80%:]"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train", "two slices .* or three .*got 1 in 'train'"),
        ("train,val,test,test", "got 4"),
        ("train[:a],train[b:]", r"cannot parse 'train\[:a\]' as a slice. Write slices such as"),
        ("train[::2],train[1::2]", "cannot parse"),
        ("0.8,train", "cannot parse '0.8'"),
        ("train[:50%,train[50%:]", "cannot parse"),
        ("train[:1shard],train[1shard:]", "counts shards"),
        ("train,", "cannot parse ''"),
    ],
)
def test_invalid_slices_are_refused_by_the_parser(text, words):
    with pytest.raises(ConfigError, match=words) as error:
        parse_split(text)
    assert "\n" not in str(error.value)


def test_slices_are_distinguished_from_fractions():
    assert parse_split("train[:80%],test") == {"train": "train[:80%]", "test": "test"}
    assert parse_split("0.8,0.1,0.1") == (0.8, 0.1, 0.1)
