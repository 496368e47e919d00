"""Label issues: the rule of confident learning, by hand and on swapped labels."""

import numpy as np

from vggjax.evaluation.metrics import class_thresholds, find_label_issues

PROBS = np.array(
    [[0.9, 0.1, 0], [0.7, 0.3, 0], [0.2, 0.8, 0], [0.1, 0.9, 0], [0.45, 0.55, 0], [0.95, 0.05, 0]]
)
LABELS = np.array([0, 0, 1, 1, 0, 1])


def test_a_threshold_is_the_class_s_mean_probability_on_its_own_images():
    expected = [(0.9 + 0.7 + 0.45) / 3, (0.8 + 0.9 + 0.05) / 3, np.inf]
    np.testing.assert_allclose(class_thresholds(PROBS, LABELS), expected)


def test_a_label_is_in_doubt_if_another_class_reaches_its_threshold():
    # Row 4 is predicted 1 and labeled 0, but 0.55 is below class 1's threshold, 0.583.
    (issue,) = find_label_issues(PROBS, LABELS)
    assert (issue.row, issue.suggested) == (5, 0)
    np.testing.assert_allclose(issue.margin, 0.9)


def test_swapped_labels_are_found_first():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 400)
    logits = rng.normal(0, 1, (400, 4))
    logits[np.arange(400), truth] += 5
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels, swapped = truth.copy(), rng.choice(400, 20, replace=False)
    labels[swapped] = (truth[swapped] + 1) % 4
    rows = [issue.row for issue in find_label_issues(probs, labels)]
    assert set(rows[:18]) <= set(swapped) and len(set(rows) & set(swapped)) >= 18


def test_a_model_that_agrees_with_every_label_finds_no_issue():
    probs = np.eye(3)[[0, 1, 2, 0]] * 0.8 + 0.2 / 3
    assert find_label_issues(probs, np.array([0, 1, 2, 0])) == []
