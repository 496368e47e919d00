"""Images of one group stay in the same split and the same fold."""

import numpy as np
import pytest
from support.made_source import source

from vggjax.data.splits.splits import FRACTIONS, SPLITS, make_folds, make_splits
from vggjax.errors import DataError


def part_of(splits: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Return the number of each example's part; every example must be in exactly one."""
    numbers = np.full(count, -1)
    for number, part in enumerate(splits.values()):
        assert (numbers[part] == -1).all()
        numbers[part] = number
    assert (numbers >= 0).all()
    return numbers


def some_groups(made, rng) -> np.ndarray:
    """Draw groups of all sizes, across classes in half of the cases."""
    count = len(made)
    groups = rng.integers(0, max(2, int(count * rng.uniform(0.2, 3))), count)
    return groups if rng.integers(2) else groups * 10 + made.labels


def test_groups_of_one_change_nothing():
    rng = np.random.default_rng(0)
    for seed in range(20):
        made = source(rng.integers(3, 40, rng.integers(2, 6)))
        without = make_splits(made, (0.6, 0.2, 0.2), seed)
        within = make_splits(made, (0.6, 0.2, 0.2), seed, rng.permutation(len(made)) + 5)
        for name in SPLITS:
            np.testing.assert_array_equal(without[name], within[name])


def test_groups_stay_together_and_each_class_is_in_each_split_if_possible():
    rng = np.random.default_rng(1)
    num_splits = 0
    for seed in range(150):
        made = source(rng.integers(1, 40, rng.integers(2, 6)))
        groups = some_groups(made, rng)
        try:
            splits = make_splits(made, FRACTIONS, seed, groups)
        except DataError:  # a few large groups leave val empty
            continue
        num_splits += 1
        parts = part_of(splits, len(made))
        assert all(len(set(parts[groups == group])) == 1 for group in groups)
        for label in range(len(made.class_names)):
            distinct = len(np.unique(groups[made.labels == label]))
            assert len(set(parts[made.labels == label])) >= min(3, distinct)
    assert num_splits > 130


def test_a_few_duplicates_do_not_change_the_counts():
    made = source([100, 60, 40])
    groups = np.arange(200)
    for label in range(3):
        members = np.flatnonzero(made.labels == label)
        groups[members[:2]], groups[members[5:8]] = members[0], members[5]
    a, b = np.flatnonzero(made.labels == 0)[9], np.flatnonzero(made.labels == 1)[9]
    groups[a] = groups[b]  # one image with two labels
    splits, plain = make_splits(made, groups=groups), make_splits(made)
    for name in SPLITS:
        np.testing.assert_array_equal(
            np.bincount(made.labels[splits[name]]), np.bincount(made.labels[plain[name]])
        )
    assert len({name for name in SPLITS for i in (a, b) if i in splits[name]}) == 1


def test_fractions_hold_if_every_image_has_copies():
    made = source([200, 100])
    groups = np.zeros(300, int)
    for label in range(2):
        members = np.flatnonzero(made.labels == label)
        groups[members] = np.arange(len(members)) // 5 * 2 + label  # five of each
    splits = make_splits(made, groups=groups)
    counts = {name: np.bincount(made.labels[part]).tolist() for name, part in splits.items()}
    assert counts == {"train": [160, 80], "val": [20, 10], "test": [20, 10]}


def test_three_groups_of_a_class_fill_three_splits_whatever_their_sizes():
    made = source([100, 8])
    groups = np.arange(108)
    groups[np.flatnonzero(made.labels == 1)] = [200] * 5 + [201] * 2 + [202]
    splits = make_splits(made, groups=groups)
    counts = [np.bincount(made.labels[splits[name]], minlength=2)[1] for name in SPLITS]
    assert counts == [5, 1, 2]


def test_groups_stay_together_when_val_is_split_off_and_official_splits_stay():
    official = {"train": np.arange(80), "test": np.arange(80, 100)}
    groups = np.arange(100) // 2
    groups[99] = groups[0]  # a leak between the official splits
    splits = make_splits(source([60, 40], official), FRACTIONS, 0, groups)
    np.testing.assert_array_equal(splits["test"], official["test"])
    parts = part_of(splits, 100)
    assert (parts[0:80:2] == parts[1:80:2]).all() and set(parts[:80]) == {0, 1}


def test_splits_do_not_depend_on_how_groups_are_numbered():
    made = source([50, 50])
    groups = np.arange(100) // 3
    first = make_splits(made, FRACTIONS, 2, groups)
    renamed = np.random.default_rng(0).permutation(100)[groups]
    again = make_splits(made, seed=2, groups=renamed)
    for name in SPLITS:
        np.testing.assert_array_equal(first[name], again[name])


@pytest.mark.parametrize("k", [2, 3, 5])
def test_folds_test_each_image_once_and_stratify(k):
    made = source([40, 23, 9])
    folds = make_folds(made, k, 0)
    assert len(folds) == k
    tested = np.concatenate([fold["test"] for fold in folds])
    np.testing.assert_array_equal(np.sort(tested), np.arange(72))
    sizes = [len(fold["test"]) for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    for fold in folds:
        assert tuple(fold) == SPLITS and all((np.diff(part) > 0).all() for part in fold.values())
        part_of(fold, 72)
        counts = np.bincount(made.labels[fold["test"]], minlength=3)
        assert (np.abs(counts - np.array([40, 23, 9]) / k) < 1).all()
        rest = 72 - len(fold["test"])
        assert abs(len(fold["val"]) - rest / 9) < 2 and set(made.labels[fold["val"]]) == {0, 1, 2}


def test_folds_keep_groups_together_and_depend_on_the_seed_alone():
    made = source([60, 45])
    groups = np.arange(105) // 3
    folds, again, other = (make_folds(made, 5, seed, groups) for seed in (0, 0, 1))
    for fold, same in zip(folds, again, strict=True):
        parts = part_of(fold, 105)
        assert (parts[0::3] == parts[1::3]).all() and (parts[0::3] == parts[2::3]).all()
        for name in SPLITS:
            np.testing.assert_array_equal(fold[name], same[name])
    assert any(not np.array_equal(a["test"], b["test"]) for a, b in zip(folds, other, strict=True))


def test_folds_pool_the_official_splits():
    official = {"train": np.arange(60), "test": np.arange(60, 80)}
    folds, plain = make_folds(source([40, 40], official), 4, 0), make_folds(source([40, 40]), 4, 0)
    for fold, same in zip(folds, plain, strict=True):
        np.testing.assert_array_equal(fold["test"], same["test"])


def test_too_many_folds_are_refused_with_the_class_sizes():
    with pytest.raises(DataError, match="'b' has 4, 'c' has 3. Set `cross_validate` to at most 3"):
        make_folds(source([9, 4, 3]), 5, 0)
    groups = np.arange(18) // 3
    with pytest.raises(DataError, match="Too few distinct images for 7 folds: class"):
        make_folds(source([9, 9]), 7, 0, groups)
    with pytest.raises(DataError, match="class 'b' has 1. Add images, or remove"):
        make_folds(source([9, 1]), 2, 0)
