"""Splits are disjoint, complete, stratified and reproducible; official splits are kept.

Groups and folds are tested in test_groups.py, slices in test_slices.py.
"""

import os
import re

import numpy as np
import pytest
from support.made_source import source
from support.tiny_run import make_images

from vggjax.atomic import write_text
from vggjax.data.sources.open import open_source
from vggjax.data.splits.splits import (
    FEW_IMAGES,
    FRACTIONS,
    SPLITS,
    SPLITS_FILE,
    make_splits,
    parse_split,
    read_splits,
    small_val_notes,
    split_notes,
    splits_text,
)
from vggjax.errors import ConfigError, DataError


@pytest.mark.parametrize("fractions", [FRACTIONS, (0.5, 0.2, 0.3), (1 / 3, 1 / 3, 1 / 3)])
def test_splits_are_disjoint_sorted_and_complete(fractions):
    splits = make_splits(source([40, 7, 13, 3]), fractions)
    assert tuple(splits) == SPLITS
    together = np.concatenate(list(splits.values()))
    np.testing.assert_array_equal(np.sort(together), np.arange(63))
    assert all((np.diff(part) > 0).all() for part in splits.values())


def test_each_class_has_its_fraction_in_each_split_within_one_example():
    counts = [100, 37, 61, 250]
    made = source(counts)
    for name, part in make_splits(made, (0.5, 0.2, 0.3), seed=3).items():
        share = dict(zip(SPLITS, (0.5, 0.2, 0.3), strict=True))[name]
        part_counts = np.bincount(made.labels[part], minlength=4)
        assert (np.abs(part_counts - share * np.array(counts)) < 1).all()


def test_the_largest_remainder_decides_the_counts():
    made = source([15, 15, 3, 100])
    counts = {n: np.bincount(made.labels[p]).tolist() for n, p in make_splits(made).items()}
    assert counts == {"train": [12, 12, 1, 80], "val": [2, 1, 1, 10], "test": [1, 2, 1, 10]}


def test_ties_alternate_between_val_and_test():
    splits = make_splits(source([15] * 10))
    assert (len(splits["val"]), len(splits["test"])) == (15, 15)


def test_the_same_seed_gives_the_same_splits_and_another_seed_others():
    first, again, other = (make_splits(source([50, 50]), seed=seed) for seed in (0, 0, 1))
    for name in SPLITS:
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


def test_a_seed_gives_the_same_splits_on_every_machine():
    splits = make_splits(source([6, 6]), (0.5, 0.25, 0.25), seed=42)
    assert {name: part.tolist() for name, part in splits.items()} == {
        "train": [0, 2, 6, 7, 9, 11],
        "val": [3, 5, 10],
        "test": [1, 4, 8],
    }


def test_official_splits_are_kept():
    official = {"train": np.arange(0, 20), "val": np.arange(20, 30), "test": np.arange(30, 40)}
    splits = make_splits(source([20, 20], official), (0.1, 0.8, 0.1), seed=5)
    for name in SPLITS:
        np.testing.assert_array_equal(splits[name], official[name])


@pytest.mark.parametrize("missing", ["val", "test"])
def test_a_missing_split_is_split_off_train_with_its_renormalized_fraction(missing):
    kept = "test" if missing == "val" else "val"
    official = {"train": np.arange(180), kept: np.arange(180, 200)}
    made = source([100, 100], official)
    splits = make_splits(made, (0.8, 0.1, 0.1))
    np.testing.assert_array_equal(splits[kept], official[kept])
    np.testing.assert_array_equal(
        np.sort(np.concatenate([splits["train"], splits[missing]])), official["train"]
    )
    in_train = np.bincount(made.labels[:180])
    counts = np.bincount(made.labels[splits[missing]])
    assert (np.abs(counts - in_train / 9) < 1).all() and counts.sum() == 20


@pytest.mark.parametrize(
    ("count", "where", "words"),
    [
        (1, {"train"}, r"'b' has 1 image \(train 1, val 0, test 0\): val and test lack it"),
        (2, {"train", "test"}, r"too few distinct images \(train 1, val 0, test 1\): val lacks it"),
    ],
)
def test_one_or_two_examples_fill_train_and_then_test_with_a_note(count, where, words):
    made = source([200, count])
    splits = make_splits(made)
    assert {name for name, part in splits.items() if (made.labels[part] == 1).any()} == where
    assert sum(len(part) for part in splits.values()) == 200 + count
    (note,) = split_notes(made, splits)
    assert re.search(words, note) and note.count(".") == 1


def test_many_small_classes_take_four_notes():
    made = source([200, 1, 1, 2, 1, 1, 2])
    notes = split_notes(made, make_splits(made))
    assert len(notes) == 4 and notes[3].startswith("3 more classes")
    enough = source([200, 3])
    assert split_notes(enough, make_splits(enough)) == []


def test_a_small_class_does_not_change_the_counts_of_others():
    alone, with_small = source([40, 30]), source([40, 30, 1])
    first = make_splits(alone, seed=4)
    counts = {name: np.bincount(alone.labels[part]) for name, part in first.items()}
    for name, part in make_splits(with_small, seed=4).items():
        np.testing.assert_array_equal(np.bincount(with_small.labels[part])[:2], counts[name])


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([1, 1, 1], "val and test would be empty: class 'a' has 1, 'b' has 1, 'c' has 1"),
        ([2, 2], "val would be empty: class 'a' has 2, 'b' has 2"),
        ([1] * 9, "'e' has 1 and 4 more"),
    ],
)
def test_an_empty_split_is_refused_with_the_class_sizes(counts, words):
    with pytest.raises(DataError, match=words):
        make_splits(source(counts))


def test_with_an_official_test_split_a_class_needs_two_training_images():
    made = source([9, 9])
    a, b = (np.flatnonzero(made.labels == label) for label in (0, 1))
    official = {"train": np.concatenate([a[:6], b[:1]]), "test": np.concatenate([a[6:], b[1:]])}
    made = source([9, 9], official)
    splits = make_splits(made)
    assert b[0] in splits["train"] and len(splits["val"]) == 1
    assert "val lacks it" in split_notes(made, splits)[0]


def test_an_official_test_split_may_lack_a_class_which_is_noted():
    made = source([10, 10])
    a = np.flatnonzero(made.labels == 0)
    rest = np.setdiff1d(np.arange(20), a[:3])
    made = source([10, 10], {"train": rest, "test": a[:3]})
    splits = make_splits(made)
    np.testing.assert_array_equal(splits["test"], a[:3])
    (note,) = split_notes(made, splits)
    assert re.search(r"'b' is not in every split .*test 0.: test lacks it, and averages", note)


def test_a_small_val_split_is_noted():
    made, splits = source([100, 100]), {"val": np.arange(16)}
    assert "16 images: each is 6.2 points" in small_val_notes(made, splits)[0]
    assert small_val_notes(made, {"val": np.arange(FEW_IMAGES)}) == []


def test_several_classes_missing_from_official_train_are_named():
    made = source([10, 3, 3, 3])
    official = {"train": np.flatnonzero(made.labels == 0), "test": np.flatnonzero(made.labels)}
    with pytest.raises(DataError, match="'b' is not in every.*Other such classes: 'c', 'd'"):
        make_splits(source([10, 3, 3, 3], official))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.8,0.1", "three fractions"),
        ("0.8,0.1,0.2", "add up to 1, .*got '0.8,0.1,0.2' .sum 1.1"),
        ("0.9,0.1,0", "above 0"),
        ("1.2,-0.1,-0.1", "above 0"),
        ("nan,0.5,0.5", "above 0"),
        ("80%", "three fractions such as"),
        ("", "three fractions such as"),
    ],
)
def test_invalid_fractions_are_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_split(text)


# splits.csv


@pytest.fixture
def folder(tmp_path):
    root = make_images(tmp_path / "set", ("a", "b, c", "薔薇"), each=6)
    (root / "a" / "00.png").rename(root / "a" / 'two\nlines, "quoted".png')
    try:
        os.rename(root / "a" / "01.png", os.fsencode(root / "a") + b"/\xff.png")
    except OSError:  # a file system with UTF-8 names only
        pass
    return root


def test_the_splits_file_restores_the_splits(folder, tmp_path):
    source = open_source(str(folder))
    splits = make_splits(source, (0.5, 0.2, 0.3), seed=3)
    write_text(tmp_path / SPLITS_FILE, splits_text(source, splits))
    restored = read_splits(tmp_path, open_source(str(folder)))
    assert restored.keys() == splits.keys()
    for name, indices in splits.items():
        np.testing.assert_array_equal(restored[name], indices)
        assert restored[name].dtype == np.int64


def test_a_run_folder_without_the_splits_file_has_no_splits(folder, tmp_path):
    assert read_splits(tmp_path, open_source(str(folder))) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("path,label", "file,label"),
        lambda text: text.replace("02.png", "gone.png", 1),
        lambda text: text.replace(",train", ",trian", 1),
        lambda text: text.replace("a/02.png,a", "a/02.png,薔薇"),
        lambda text: text.rsplit(",", 1)[0],
        lambda text: "",
    ],
    ids=["header", "path", "split", "label", "cut", "empty"],
)
def test_a_splits_file_that_does_not_fit_is_refused(folder, tmp_path, damage):
    source = open_source(str(folder))
    text = splits_text(source, make_splits(source))
    (tmp_path / SPLITS_FILE).write_text(damage(text), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DataError, match="splits.csv does not fit the dataset set"):
        read_splits(tmp_path, source)
