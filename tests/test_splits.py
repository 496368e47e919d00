"""Splits are disjoint, whole, stratified, the same everywhere; a data set's own are kept."""

import numpy as np
import pytest

from vggjax.data.pictures import Picture
from vggjax.data.source import Source
from vggjax.data.splits import FRACTIONS, SPLITS, make_splits, parse_split
from vggjax.errors import ConfigError, DataError


def source(counts, splits=None) -> Source:
    labels = np.random.default_rng(9).permutation(np.repeat(np.arange(len(counts)), counts))
    return Source(
        name="made",
        class_names=tuple("abcdefghijklmnop"[: len(counts)]),
        labels=labels.astype(np.int32),
        ids=[str(i) for i in range(len(labels))],
        splits=splits,
        read=lambda i: Picture(np.zeros((1, 1, 3), np.uint8)),
        fingerprint="",
    )


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


def test_a_class_with_fewer_than_three_examples_is_named_with_its_count():
    with pytest.raises(DataError, match="Class 'b' has 2 examples, too few"):
        make_splits(source([200, 2]))


def test_three_examples_are_enough():
    assert [len(part) for part in make_splits(source([3, 3])).values()] == [2, 2, 2]


def test_a_class_that_an_own_split_lacks_is_named_with_the_counts():
    made = source([10, 10])
    a = np.flatnonzero(made.labels == 0)
    rest = np.setdiff1d(np.arange(20), a[:3])
    made = source([10, 10], {"train": rest, "test": a[:3]})
    with pytest.raises(DataError, match="Class 'b' is not in every split: .*test 0"):
        make_splits(made)


def test_a_split_is_parsed():
    assert parse_split("0.5,0.2,0.3") == (0.5, 0.2, 0.3)
    assert parse_split(" .8, .1 ,.1") == (0.8, 0.1, 0.1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.8,0.1", "three shares"),
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
    with pytest.raises(ConfigError, match="--seed"):
        make_splits(source([9, 9]), seed=-1)
