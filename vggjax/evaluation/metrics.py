"""Compute a classifier's metrics, and find doubtful labels, from probabilities and labels.

In: probs (N, C), each row summing to 1, and labels (N,) in 0..C-1. Out: plain Python numbers, ready
for JSON. A class without examples, or one that is never predicted, has precision, recall and F1 of
0, as in scikit-learn with `zero_division=0`. No model, file or plot here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

TOP_K = 5
"""Top-5 accuracy is reported if there are more classes than this."""

MAX_MATRIX = 1000
"""Up to this many classes a result has the whole confusion matrix; of 21,000 it would be 1.3 GB."""

Z_95 = 1.959963984540054
"""The normal distribution's 97.5 % quantile, for two-sided 95 % intervals."""


def summarize(probs: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Compute all metrics of one evaluation.

    Returns:
        num_examples, loss (nats), accuracy, accuracy_interval [low, high] (95 %), top5 (only with
        more than five classes), per_class [{name, precision, recall, f1, support}], macro
        {precision, recall, f1} (means over the classes that have examples), and confusion (C lists
        of C counts, rows are the true classes). With more than `MAX_MATRIX` classes confusion is
        empty, and confused has its cells that are not 0: lists [true, predicted, count].
    """
    num_classes = len(class_names)
    result = {"num_examples": len(labels), "loss": log_loss(probs, labels)}
    if num_classes > TOP_K:
        result["top5"] = float((top_classes(probs) == labels[:, None]).any(1).mean())
    ones = np.ones_like(labels)
    pairs = _count_pairs(np.stack([labels, probs.argmax(1), ones], axis=1), num_classes)
    return result | _confusion_metrics(pairs, class_names)


def pool(results: Sequence[dict[str, Any]], class_names: Sequence[str]) -> dict[str, Any]:
    """Combine the results of `summarize` on disjoint sets of examples into that of all of them."""
    counts = np.asarray([result["num_examples"] for result in results])
    pooled: dict[str, Any] = {"num_examples": int(counts.sum())}
    for name in ("loss", "top5"):
        if name in results[0]:
            values = [result[name] for result in results]
            pooled[name] = float(np.average(values, weights=counts))
    pairs = np.concatenate([pairs_of(result) for result in results])
    return pooled | _confusion_metrics(_count_pairs(pairs, len(class_names)), class_names)


def _confusion_metrics(pairs: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    num_classes, (truth, guess, counts) = len(class_names), pairs.T
    hits, support, predicted = (
        np.bincount(classes, weights, num_classes).astype(np.int64)
        for classes, weights in (
            (truth, counts * (truth == guess)),
            (truth, counts),
            (guess, counts),
        )
    )
    correct, total = int(hits.sum()), int(support.sum())
    scores = {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, support + predicted),
        "support": support,
    }
    has_examples = support > 0
    means = {key: scores[key][has_examples].mean() for key in ("precision", "recall", "f1")}
    return {
        "accuracy": correct / total,
        "accuracy_interval": list(wilson_interval(correct, total)),
        "per_class": [
            {"name": name, **{key: values[i].item() for key, values in scores.items()}}
            for i, name in enumerate(class_names)
        ],
        "macro": {key: float(mean) for key, mean in means.items()},
        **_confusion_cells(pairs, num_classes),
    }


def _confusion_cells(pairs: np.ndarray, num_classes: int) -> dict[str, list]:
    if num_classes > MAX_MATRIX:
        return {"confusion": [], "confused": pairs.tolist()}
    truth, guess, counts = pairs.T
    matrix = np.zeros((num_classes, num_classes), np.int64)
    matrix[truth, guess] = counts
    return {"confusion": matrix.tolist()}


def _count_pairs(pairs: np.ndarray, num_classes: int) -> np.ndarray:
    """Sum the counts of equal pairs of classes: int64 (K, 3) of true, predicted and count."""
    truth, guess, counts = pairs.astype(np.int64).T
    cells, places = np.unique(truth * num_classes + guess, return_inverse=True)
    sums = np.bincount(places, counts, len(cells)).astype(np.int64)
    return np.stack([*np.divmod(cells, num_classes), sums], axis=1)


def pairs_of(result: Mapping[str, Any]) -> np.ndarray:
    """Return the pairs of classes that a result of `summarize` counts: int64 (K, 3), in order."""
    if not result["confusion"]:
        return np.asarray(result["confused"], np.int64).reshape(-1, 3)
    matrix = np.asarray(result["confusion"], np.int64)
    truth, guess = np.nonzero(matrix)
    return np.stack([truth, guess, matrix[truth, guess]], axis=1)


def log_loss(probs: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy in nats."""
    # Softmax rounds probabilities below the spacing at 1 (1.2e-7 for float32) to 0.
    eps = np.finfo(probs.dtype).eps
    true_class_probs = np.clip(probs[np.arange(len(labels)), labels], eps, 1 - eps)
    return float(-np.log(true_class_probs.astype(np.float64)).mean())


def top_classes(probs: np.ndarray, k: int = TOP_K) -> np.ndarray:
    """Return the k most probable classes, best first, (N, min(k, C)); the first is the argmax."""
    return np.argsort(-np.asarray(probs), axis=1, kind="stable")[:, :k]


def wilson_interval(correct: float, total: float) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion at 95 % (1927, J. Am. Stat. Assoc. 22:209).

    Unlike the normal approximation it stays inside [0, 1] and always has a width.
    """
    share, z = correct / total, Z_95
    middle = share + z**2 / (2 * total)
    reach = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    scale = 1 + z**2 / total
    low, high = (middle - reach) / scale, (middle + reach) / scale
    # At 0 and 1 rounding would leave the share itself just outside its own interval.
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def most_confused(
    result: Mapping[str, Any], class_names: Sequence[str], *, top: int = 10
) -> list[tuple[str, str, int]]:
    """Return the `top` most confused pairs (true class, predicted class, count), by count.

    `result` is one of `summarize`.
    """
    pairs = pairs_of(result)
    wrong = pairs[pairs[:, 0] != pairs[:, 1]]
    most = wrong[np.argsort(-wrong[:, 2], kind="stable")[:top]].tolist()
    return [(class_names[truth], class_names[guess], count) for truth, guess, count in most]


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test for two models on the same images.

    `only_first` images are classified correctly by the first model alone, `only_second` by the
    second. Under the null hypothesis each is a fair coin flip (1947, Psychometrika 12:153).
    """
    from scipy.stats import binomtest

    total = only_first + only_second
    return float(binomtest(only_first, total).pvalue) if total else 1.0


class LabelIssue(NamedTuple):
    """One image whose label is in doubt."""

    row: int
    """The index of the image in `probs`."""
    suggested: int
    """The class that the model suggests."""
    margin: float
    """The suggested class' probability minus the label's; larger means more doubt."""


def find_label_issues(probs: np.ndarray, labels: np.ndarray) -> list[LabelIssue]:
    """Return the images whose label is in doubt, the largest margin first.

    The rule is confident learning's (Northcutt et al., arXiv:1911.00068): the probability of
    another class reaches that class' threshold and is the highest that does. Only a person who
    looks can decide whether the label or the model is wrong.

    `probs` (N, C) must be of images that the model was not trained on: it agrees with a label that
    it has learned, right or wrong. A class without images is never suggested.
    """
    probs, labels = np.asarray(probs, np.float64), np.asarray(labels)
    reached = np.where(probs >= class_thresholds(probs, labels), probs, -1.0)
    suggested = reached.argmax(1)
    rows = np.arange(len(labels))
    is_issue = (reached[rows, suggested] >= 0) & (suggested != labels)
    margins = probs[rows, suggested] - probs[rows, labels]
    order = np.argsort(-margins, kind="stable")
    return [LabelIssue(int(i), int(suggested[i]), float(margins[i])) for i in order if is_issue[i]]


def class_thresholds(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return each class' mean probability on its images, (C,), equation 2; inf without images."""
    num_classes = probs.shape[1]
    counts = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, probs[np.arange(len(labels)), labels], num_classes)
    return np.divide(sums, counts, out=np.full(num_classes, np.inf), where=counts > 0)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
