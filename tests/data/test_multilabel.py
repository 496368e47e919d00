"""Targets of several labels per image: their scores, thresholds, weights and splits."""

import dataclasses

import numpy as np
import pytest
from support.made_source import source

from vggjax.data.multilabel import (
    average_precision,
    binary_weights,
    choose_thresholds,
    epoch_metrics,
    f1_score,
    log_loss,
    number_combinations,
    stratification_labels,
    weighted_average_precision,
)
from vggjax.data.sources.source import ImageFile, make_file_source
from vggjax.data.splits.splits import (
    balanced_weights,
    make_folds,
    make_splits,
    read_splits,
    small_val_notes,
    split_notes,
    splits_text,
)
from vggjax.errors import DataError


def plain_average_precision(probs, target):
    """Compute average precision from its definition, one threshold after the other."""
    score, recall = 0.0, 0.0
    for threshold in sorted(set(probs.tolist()), reverse=True):
        predicted = [label for prob, label in zip(probs, target, strict=True) if prob >= threshold]
        precision, new_recall = np.mean(predicted), sum(predicted) / sum(target)
        score += precision * (new_recall - recall)
        recall = new_recall
    return score


def made(targets, splits=None):
    """Return a dataset of one-pixel images with these targets."""
    plain = source([len(targets)])
    names = tuple("abcdefgh"[: targets.shape[1]])
    labels = number_combinations(targets)
    return dataclasses.replace(
        plain, class_names=names, labels=labels, targets=targets, splits=splits
    )


def random_targets(count=400, shares=(0.5, 0.3, 0.1, 0.04), seed=0):
    return np.random.default_rng(seed).random((count, len(shares))) < shares


@pytest.mark.parametrize("digits", [1, 9], ids=["ties", "no ties"])
def test_average_precision_agrees_with_its_definition(digits):
    rng = np.random.default_rng(1)
    probs, targets = rng.random((50, 4)).round(digits), random_targets(50)
    expected = [plain_average_precision(probs[:, c], targets[:, c]) for c in range(4)]
    np.testing.assert_allclose(average_precision(probs, targets), expected, rtol=1e-12)


def test_average_precision_of_a_ranking_by_hand():
    probs, target = np.array([[0.9], [0.8], [0.7]]), np.array([[True], [False], [True]])
    assert average_precision(probs, target)[0] == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(average_precision(probs, ~(target | ~target))[0])


def test_an_image_of_weight_three_counts_as_three_images():
    rng = np.random.default_rng(2)
    probs, targets = rng.random((20, 3)).round(1), random_targets(20, (0.5, 0.4, 0.3))
    weights = rng.integers(0, 4, 20)
    repeated = average_precision(*(np.repeat(x, weights, axis=0) for x in (probs, targets)))
    weighted = weighted_average_precision(probs, targets, weights[None].astype(float))
    np.testing.assert_allclose(weighted[0], repeated, rtol=1e-12)


def test_no_threshold_has_a_higher_f1_than_the_chosen_one():
    rng = np.random.default_rng(3)
    targets = random_targets(60)
    probs = np.clip(0.4 * targets + 0.6 * rng.random(targets.shape), 0, 1).round(2)
    chosen = choose_thresholds(probs, targets)

    def f1(c, threshold):
        guess, target = probs[:, c] >= threshold, targets[:, c]
        return float(f1_score((guess & target).sum(), guess.sum(), target.sum()))

    for c in range(4):
        best = max(f1(c, threshold) for threshold in np.linspace(0, 1, 1001))
        assert f1(c, chosen[c]) == pytest.approx(best)


def test_a_threshold_lies_between_two_probabilities():
    probs = np.array([[0.9, 0.2], [0.5, 0.9], [0.1, 0.4]])
    targets = np.array([[True, False], [True, False], [False, False]])
    np.testing.assert_allclose(choose_thresholds(probs, targets), [0.3, 0.5])


def test_metrics_of_an_epoch_by_hand():
    probs = np.array([[0.8, 0.3], [0.6, 0.6]])
    targets = np.array([[True, False], [False, True]])
    metrics = epoch_metrics(probs, targets)
    assert metrics["accuracy"] == 0.75 and metrics["f1"] == pytest.approx(2 * 2 / (3 + 2))
    expected = -np.log([0.8, 0.7, 0.4, 0.6]).mean()
    assert metrics["loss"] == pytest.approx(expected) == log_loss(probs, targets)
    assert metrics["mAP"] == 1.0
    assert np.isnan(epoch_metrics(np.full((2, 2), np.nan), targets)["mAP"])


def test_balanced_weights_are_those_of_each_label_by_itself():
    targets = random_targets()
    expected = [balanced_weights(column.astype(int), 2) for column in targets.T]
    np.testing.assert_array_equal(binary_weights(targets), expected)


def test_rare_combinations_are_stratified_by_their_rarest_label():
    common = [[True, False, False]] * 20 + [[True, True, False]] * 12
    targets = np.array([*common, [True, False, True], [True, True, True], [False, False, False]])
    strata = stratification_labels(targets)
    assert len(set(strata[:20])) == len(set(strata[20:32])) == 1
    assert strata[32] == strata[33] and len({*strata.tolist()}) == 4


@pytest.mark.parametrize(
    "targets",
    [random_targets(), random_targets(200, (0.3,) * 8)],
    ids=["common combinations", "unique combinations"],
)
def test_each_split_has_its_share_of_each_label(targets):
    splits = make_splits(made(targets), (0.6, 0.2, 0.2))
    for name, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        expected = share * targets.sum(0)
        assert np.all(abs(targets[splits[name]].sum(0) - expected) <= 2 + 0.1 * expected), name


def test_a_label_may_be_missing_in_test_and_not_in_train():
    targets = np.zeros((40, 2), bool)
    targets[::2, 0] = targets[1, 1] = True
    dataset = made(targets)
    splits = make_splits(dataset)
    assert 1 in splits["train"]
    (note,) = split_notes(dataset, splits)
    assert note == "Class 'b' has 1 image (train 1, val 0, test 0): val and test lack it."
    assert "'b' 0" in small_val_notes(dataset, splits)[0]
    official = {"train": np.arange(2, 20), "val": np.arange(20, 40), "test": np.arange(2)}
    with pytest.raises(DataError, match="'b' is not in every split: train 0, val 0, test 1"):
        make_splits(made(targets, official))
    with pytest.raises(DataError, match="Too few distinct images for 3 folds: class 'b' has 1"):
        make_folds(dataset, 3, 0)


def test_folds_test_each_image_once_and_train_on_every_label():
    targets = random_targets(120, (0.5, 0.2, 0.05))
    folds = make_folds(made(targets), 4, 0)
    tested = np.sort(np.concatenate([fold["test"] for fold in folds]))
    np.testing.assert_array_equal(tested, np.arange(120))
    assert all(targets[fold["train"]].any(0).all() for fold in folds)


def test_splits_are_read_back_and_other_labels_are_another_dataset(tmp_path):
    targets = random_targets(60, (0.5, 0.4))
    dataset = made(targets)
    splits = make_splits(dataset)
    (tmp_path / "splits.csv").write_text(splits_text(dataset, splits))
    for name, indices in read_splits(tmp_path, dataset).items():
        np.testing.assert_array_equal(indices, splits[name])
    with pytest.raises(DataError, match="was labeled"):
        read_splits(tmp_path, made(~targets))
    files = [ImageFile(str(i), "", "", 1) for i in range(60)]
    alone = np.eye(2, dtype=bool)[np.arange(60) % 2]  # a or b, and beside it a and b, or a:
    both = np.array([[True, True], [True, False]])[np.arange(60) % 2]  # the same two groups
    fingerprints = {
        make_file_source("x", ("a", "b"), files, locate=tmp_path.joinpath, targets=t).fingerprint
        for t in (alone, both)
    }
    assert len(fingerprints) == 2
