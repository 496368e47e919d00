"""The metrics, intervals and doubtful labels of images with several labels each."""

import json

import numpy as np
import pytest

from vggjax.evaluation.multilabel import (
    COLUMNS,
    find_multilabel_issues,
    prediction_lines,
    summarize,
)

NAMES = ("a", "b", "c")


def by_hand():
    """Return probabilities and targets of four images; no image has the label c."""
    probs = np.array([[0.9, 0.8, 0.1], [0.7, 0.4, 0.6], [0.2, 0.3, 0.2], [0.6, 0.1, 0.3]])
    targets = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]], bool)
    return probs, targets


def test_the_scores_of_four_images_by_hand():
    result = summarize(*by_hand(), np.array([0.5, 0.35, 0.5]), NAMES)
    a, b, c = result["per_class"]
    assert (a["precision"], a["recall"], a["f1"], a["support"]) == (2 / 3, 1.0, 0.8, 2)
    assert a["average_precision"] == 1.0 and (b["f1"], b["threshold"]) == (1.0, 0.35)
    assert (c["support"], c["f1"], c["average_precision"]) == (0, 0.0, 0.0)
    assert result["macro"]["f1"] == pytest.approx(0.9) and result["mAP"] == 1.0
    # Of 12 decisions one a and one c are wrong: 4 hits, 6 predicted, 4 true.
    assert result["micro"]["f1"] == 0.8 and result["accuracy"] == 10 / 12
    assert result["exact_match"] == 0.5
    assert result["cooccurrence"] == [[2, 2, 0], [2, 2, 0], [0, 0, 0]]
    assert result["predicted_cooccurrence"] == [[3, 2, 1], [2, 2, 1], [1, 1, 1]]
    json.dumps(result, allow_nan=False)


def test_thresholds_of_each_image_are_those_of_the_model_that_saw_it():
    probs, targets = by_hand()
    both = summarize(probs, targets, np.array([[0.5, 0.35, 0.5]] * 2 + [[1.0] * 3] * 2), NAMES)
    assert both["per_class"][0]["precision"] == 1.0
    assert both["per_class"][0]["threshold"] == 0.75


def test_the_intervals_hold_the_scores_and_narrow_with_more_images():
    rng = np.random.default_rng(0)
    widths = []
    for count in (60, 600):
        targets = rng.random((count, 3)) < (0.5, 0.3, 0.2)
        probs = np.clip(0.3 * targets + 0.7 * rng.random(targets.shape), 0, 1)
        result = summarize(probs, targets, np.full(3, 0.5), NAMES)
        for key, value in (("mAP", result["mAP"]), ("macro_f1", result["macro"]["f1"])):
            low, high = result[f"{key}_interval"]
            assert low < value < high
        widths.append(np.ptp(result["mAP_interval"]))
    assert widths[1] < widths[0] / 2


def test_a_line_names_missing_and_extra_labels():
    probs, targets = by_hand()
    rows = [("x.png", targets[1], np.array([0.7, 0.1, 0.6])), ("=y", targets[2], probs[2])]
    header, first, second = prediction_lines(
        rows, "test", thresholds=np.full(3, 0.5), class_names=NAMES
    )
    assert header == ",".join([*COLUMNS, *NAMES]) + "\n"
    loss = -np.log([0.7, 0.1, 0.4]).mean()
    assert first == f"x.png,test,a|b,a|c,b,c,{loss:.6f},0,0.700000,0.100000,0.600000\n"
    assert second.startswith("'=y,test,,,,,") and ",1,0.2" in second


def test_a_planted_wrong_label_is_the_most_doubtful_one():
    rng = np.random.default_rng(0)
    targets = rng.random((200, 3)) < 0.4
    probs = np.where(targets, 0.9, 0.1) + rng.uniform(-0.08, 0.08, targets.shape)
    probs[5] = np.where(targets[5], 0.99, 0.01)
    labels = targets.copy()
    labels[5, 1] = ~labels[5, 1]
    first, *others = find_multilabel_issues(probs, labels)
    assert (first.row, first.label, first.is_missing) == (5, 1, bool(targets[5, 1]))
    assert first.margin > 0.9 and all(issue.margin < 0 for issue in others)
