"""Metrics against scikit-learn and published tables."""

import json
import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from vggjax.evaluation import metrics


def random_case(num_examples, num_classes, seed, *, dtype=np.float32):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(num_classes, 0.3), num_examples).astype(dtype)
    return probs, rng.integers(0, num_classes, num_examples)


def class_names(count):
    return tuple(f"class{i}" for i in range(count))


@pytest.mark.parametrize(("examples", "classes"), [(1, 2), (7, 2), (40, 5), (300, 17), (30, 100)])
def test_every_figure_is_scikit_learns(examples, classes):
    probs, labels = random_case(examples, classes, seed=examples)
    predictions, every = probs.argmax(1), np.arange(classes)
    result = metrics.summarize(probs, labels, class_names(classes))

    assert result["num_examples"] == examples
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(labels, predictions))
    assert result["confusion"] == sk.confusion_matrix(labels, predictions, labels=every).tolist()
    with warnings.catch_warnings():
        # float32 rows that sum to 1 within 1e-7 are not close enough for scikit-learn.
        warnings.simplefilter("ignore", UserWarning)
        assert result["loss"] == pytest.approx(sk.log_loss(labels, probs, labels=every), rel=1e-5)
    keywords = dict(labels=every, zero_division=0)
    expected = sk.precision_recall_fscore_support(labels, predictions, **keywords)
    for key, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(
            [row[key] for row in result["per_class"]], values, rtol=1e-12, atol=0
        )
    present = dict(labels=np.unique(labels), zero_division=0)  # classes with examples
    macro = sk.precision_recall_fscore_support(labels, predictions, average="macro", **present)
    np.testing.assert_allclose(list(result["macro"].values()), macro[:3], rtol=1e-12, atol=0)
    if classes > 5:
        top5 = sk.top_k_accuracy_score(labels, probs, k=5, labels=every)
        assert result["top5"] == pytest.approx(top5)


def test_five_classes_or_fewer_have_no_top5():
    assert "top5" not in metrics.summarize(*random_case(9, 5, 0), class_names(5))
    assert "top5" in metrics.summarize(*random_case(9, 6, 0), class_names(6))


def test_a_probability_rounded_to_0_has_a_finite_loss():
    probs = np.array([[1.0, 0.0]], np.float32)
    assert metrics.log_loss(probs, np.array([1])) == pytest.approx(15.94, abs=0.01)


def test_the_interval_is_wilsons():
    # Newcombe (1998), Stat. Med. 17:857, table I, method 3.
    assert metrics.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert metrics.wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert metrics.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert metrics.wilson_interval(29, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)


@pytest.mark.parametrize("total", [1, 2, 10, 1000])
def test_the_interval_contains_the_share_and_stays_between_0_and_1(total):
    for correct in {0, 1, total // 2, total}:
        low, high = metrics.wilson_interval(correct, total)
        assert 0 <= low <= correct / total <= high <= 1


def test_the_first_of_the_top_classes_is_the_argmax_even_in_a_tie():
    probs = np.array([[0.25, 0.25, 0.25, 0.25], [0.1, 0.4, 0.1, 0.4]])
    np.testing.assert_array_equal(metrics.top_classes(probs, 2), [[0, 1], [1, 3]])


def test_the_most_confused_pairs_come_by_count_without_the_diagonal():
    confusion = [[50, 3, 0], [12, 40, 1], [0, 0, 9]]
    result = {"confusion": confusion}
    assert metrics.most_confused(result, ("daisy", "dandelion", "rose")) == [
        ("dandelion", "daisy", 12),
        ("daisy", "dandelion", 3),
        ("dandelion", "rose", 1),
    ]
    assert confusion[0][0] == 50


def test_many_classes_have_the_cells_of_their_confusion_matrix_and_the_same_metrics(monkeypatch):
    cases = [random_case(examples, 30, seed) for seed, examples in enumerate((40, 25))]
    names, cells = class_names(30), "confusion confused".split()
    whole = [metrics.summarize(*case, names) for case in cases]
    monkeypatch.setattr(metrics, "MAX_MATRIX", 29)
    sparse = [metrics.summarize(*case, names) for case in cases]
    for a, b in zip(
        [*whole, metrics.pool(whole, names)], [*sparse, metrics.pool(sparse, names)], strict=True
    ):
        assert b["confusion"] == [] and all(count for *_, count in b["confused"])
        assert {k: v for k, v in a.items() if k not in cells} == {
            k: v for k, v in b.items() if k not in cells
        }
        assert metrics.most_confused(a, names) == metrics.most_confused(b, names)
    matrix = np.zeros((30, 30), int)
    for truth, guess, count in sparse[0]["confused"]:
        matrix[truth, guess] = count
    assert matrix.tolist() == whole[0]["confusion"]


def test_pooled_evaluations_are_one_evaluation_of_all_their_examples():
    cases = [random_case(examples, 7, seed) for seed, examples in enumerate((20, 31, 4))]
    parts = [metrics.summarize(probs, labels, class_names(7)) for probs, labels in cases]
    probs, labels = (np.concatenate(arrays) for arrays in zip(*cases, strict=True))
    pooled, whole = (
        metrics.pool(parts, class_names(7)),
        metrics.summarize(probs, labels, class_names(7)),
    )
    assert pooled.keys() == whole.keys()
    for name in ("loss", "top5"):
        assert pooled.pop(name) == pytest.approx(whole.pop(name), rel=1e-6)
    assert pooled == whole


def test_a_summary_survives_json_unchanged():
    summary = metrics.summarize(*random_case(20, 7, 3), class_names(7))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
