"""Splits are disjoint, whole, stratified, the same everywhere; a dataset's own are kept.

Groups and folds are in test_groups.py, slices in tfds' words in test_instructions.py.
"""

import re

import numpy as np
import pytest
from support.made_source import source

from vggjax.data.splits.splits import (
    FRACTIONS,
    SPLITS,
    make_splits,
    parse_split,
    split_notes,
)
from vggjax.errors import ConfigError, DataError


@pytest.mark.parametrize("fractions", [FRACTIONS, (0.5, 0.2, 0.3), (1 / 3, 1 / 3, 1 / 3)])
def test_splits_are_disjoint_sorted_and_hold_every_example(fractions):
    splits = make_splits(source([40, 7, 13, 3]), fractions)
    assert tuple(splits) == SPLITS
    together = np.concatenate(list(splits.values()))
    np.testing.assert_array_equal(np.sort(together), np.arange(63))
    assert all((np.diff(part) > 0).all() for part in splits.values())


def test_each_class_has_its_share_in_each_split_within_one_example():
    counts = [100, 37, 61, 250]
    made = source(counts)
    for name, part in make_splits(made, (0.5, 0.2, 0.3), seed=3).items():
        share = dict(zip(SPLITS, (0.5, 0.2, 0.3), strict=True))[name]
        found = np.bincount(made.labels[part], minlength=4)
        assert (np.abs(found - share * np.array(counts)) < 1).all()


def test_known_counts_come_out():
    made = source([15, 15, 3, 100])
    found = {n: np.bincount(made.labels[p]).tolist() for n, p in make_splits(made).items()}
    assert found == {"train": [12, 12, 1, 80], "val": [2, 1, 1, 10], "test": [1, 2, 1, 10]}


def test_ties_do_not_all_go_to_the_same_split():
    splits = make_splits(source([15] * 10))
    assert (len(splits["val"]), len(splits["test"])) == (15, 15)


def test_the_same_seed_gives_the_same_splits_and_another_seed_others():
    first, again, other = (make_splits(source([50, 50]), seed=seed) for seed in (0, 0, 1))
    for name in SPLITS:
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


def test_the_splits_are_these_on_every_machine():
    splits = make_splits(source([6, 6]), (0.5, 0.25, 0.25), seed=42)
    assert {name: part.tolist() for name, part in splits.items()} == {
        "train": [0, 2, 6, 7, 9, 11],
        "val": [3, 5, 10],
        "test": [1, 4, 8],
    }


def test_own_splits_are_kept_whole():
    own = {"train": np.arange(0, 20), "val": np.arange(20, 30), "test": np.arange(30, 40)}
    splits = make_splits(source([20, 20], own), (0.1, 0.8, 0.1), seed=5)
    for name in SPLITS:
        np.testing.assert_array_equal(splits[name], own[name])


@pytest.mark.parametrize("missing", ["val", "test"])
def test_a_missing_split_is_cut_from_train_by_its_share_of_the_two(missing):
    kept = "test" if missing == "val" else "val"
    own = {"train": np.arange(180), kept: np.arange(180, 200)}
    made = source([100, 100], own)
    splits = make_splits(made, (0.8, 0.1, 0.1))
    np.testing.assert_array_equal(splits[kept], own[kept])
    np.testing.assert_array_equal(
        np.sort(np.concatenate([splits["train"], splits[missing]])), own["train"]
    )
    in_train = np.bincount(made.labels[:180])
    found = np.bincount(made.labels[splits[missing]])
    assert (np.abs(found - in_train / 9) < 1).all() and found.sum() == 20


@pytest.mark.parametrize(
    ("count", "where", "words"),
    [
        (
            1,
            {"train"},
            r"'b' has 1 image \(train 1, val 0, test 0\): val and test cannot",
        ),
        (
            2,
            {"train", "test"},
            r"too few distinct images \(train 1, val 0, test 1\): val cannot",
        ),
    ],
)
def test_one_or_two_examples_go_to_train_and_then_to_test_and_that_is_said(count, where, words):
    made = source([200, count])
    splits = make_splits(made)
    assert {name for name, part in splits.items() if (made.labels[part] == 1).any()} == where
    assert sum(len(part) for part in splits.values()) == 200 + count
    (remark,) = split_notes(made, splits)
    assert re.search(words, remark) and remark.count(".") == 1


def test_many_small_classes_take_four_sentences():
    made = source([200, 1, 1, 2, 1, 1, 2])
    remarks = split_notes(made, make_splits(made))
    assert len(remarks) == 4 and remarks[3].startswith("3 more classes")
    enough = source([200, 3])
    assert split_notes(enough, make_splits(enough)) == []


def test_a_small_class_changes_nothing_for_the_others():
    alone, beside = source([40, 30]), source([40, 30, 1])
    first = make_splits(alone, seed=4)
    of = {name: np.bincount(alone.labels[part]) for name, part in first.items()}
    for name, part in make_splits(beside, seed=4).items():
        np.testing.assert_array_equal(np.bincount(beside.labels[part])[:2], of[name])


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([1, 1, 1], "val and test would be empty: class 'a' has 1, 'b' has 1, 'c' has 1"),
        ([2, 2], "val would be empty: class 'a' has 2, 'b' has 2"),
        ([1] * 9, "'e' has 1 and 4 more"),
    ],
)
def test_a_split_that_would_be_empty_names_all_small_classes(counts, words):
    with pytest.raises(DataError, match=words):
        make_splits(source(counts))


def test_where_only_val_is_cut_a_class_needs_two_in_train():
    made = source([9, 9])
    a, b = (np.flatnonzero(made.labels == label) for label in (0, 1))
    own = {"train": np.concatenate([a[:6], b[:1]]), "test": np.concatenate([a[6:], b[1:]])}
    made = source([9, 9], own)
    splits = make_splits(made)
    assert b[0] in splits["train"] and len(splits["val"]) == 1
    assert "val cannot judge it" in split_notes(made, splits)[0]


def test_three_examples_are_enough():
    assert [len(part) for part in make_splits(source([3, 3])).values()] == [2, 2, 2]


def test_a_class_that_an_own_split_lacks_is_named_with_the_counts():
    made = source([10, 10])
    a = np.flatnonzero(made.labels == 0)
    rest = np.setdiff1d(np.arange(20), a[:3])
    made = source([10, 10], {"train": rest, "test": a[:3]})
    with pytest.raises(DataError, match="Class 'b' is not in every split: .*test 0"):
        make_splits(made)


def test_a_class_that_own_train_lacks_is_named_and_the_number_of_others():
    made = source([10, 3, 3, 3])
    own = {"train": np.flatnonzero(made.labels == 0), "test": np.flatnonzero(made.labels)}
    with pytest.raises(DataError, match="'a' is not in every.*Other such classes: 'b', 'c', 'd'"):
        make_splits(source([10, 3, 3, 3], own))


def test_a_split_is_parsed():
    assert parse_split("0.5,0.2,0.3") == (0.5, 0.2, 0.3)
    assert parse_split(" .8, .1 ,.1") == (0.8, 0.1, 0.1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.8,0.1", "three fractions"),
        ("0.8,0.1,0.2", "add up to 1; got '0.8,0.1,0.2', which is 1.1"),
        ("0.9,0.1,0", "above 0"),
        ("1.2,-0.1,-0.1", "above 0"),
        ("nan,0.5,0.5", "above 0"),
        ("80%", "three numbers"),
        ("", "three numbers"),
    ],
)
def test_a_split_that_cannot_be_is_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_split(text)


def test_a_negative_seed_is_refused():
    with pytest.raises(ConfigError, match="`seed` must be 0 or more; got -1"):
        make_splits(source([9, 9]), seed=-1)
