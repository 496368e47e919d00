"""Turns probabilities and true labels into the figures that a person judges a classifier by.

In: probs (N, C), each row summing to 1, and labels (N,) in 0..C-1. Out: plain Python numbers, ready
for JSON. A class without examples, or one that is never guessed, counts as 0 and not as an error,
as in scikit-learn with `zero_division=0`. numpy only: no model, no file and no plot here.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

TOP_K = 5
"""Top-5 accuracy is told apart from accuracy only where there are more classes than this."""

Z_95 = 1.959963984540054
"""The normal distribution's 97.5 % point: 95 % lie within this many deviations of the mean."""


def summarize(probs: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict:
    """Gives every figure of one evaluation.

    Returns:
        num_examples, loss (nats), accuracy, accuracy_interval [low, high] (95 %), top5 (only with
        more than five classes), per_class [{name, precision, recall, f1, support}], macro
        {precision, recall, f1} (plain means over the classes that have examples), and confusion (C
        lists of C counts, rows are the truth).
    """
    probs, labels = np.asarray(probs), np.asarray(labels)
    num_classes = len(class_names)
    if labels.ndim != 1 or probs.shape != (len(labels), num_classes) or not len(labels):
        raise ValueError(
            f"probs must be (N, {num_classes}) and labels (N,) with N from 1; got {probs.shape} "
            f"and {labels.shape}."
        )
    result = {"num_examples": len(labels), "loss": log_loss(probs, labels)}
    if num_classes > TOP_K:
        result["top5"] = top_k_accuracy(probs, labels, k=TOP_K)
    return result | _judge(confusion_matrix(labels, probs.argmax(1), num_classes), class_names)


def pool(results: Sequence[dict], class_names: Sequence[str]) -> dict[str, Any]:
    """Gives the figures over all examples of several evaluations, none of them in two.

    In: what `summarize` gave for each. Out: the same keys, as if it had been one evaluation.
    """
    counts = np.asarray([result["num_examples"] for result in results])
    pooled: dict[str, Any] = {"num_examples": int(counts.sum())}
    for name in ("loss", "top5"):
        if name in results[0]:
            pooled[name] = float(np.average([r[name] for r in results], weights=counts))
    confusion = np.sum([result["confusion"] for result in results], axis=0)
    return pooled | _judge(confusion, class_names)


def _judge(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    correct, total = int(np.trace(confusion)), int(confusion.sum())
    scores = class_scores(confusion)
    there = scores["support"] > 0
    return {
        "accuracy": correct / total,
        "accuracy_interval": list(wilson_interval(correct, total)),
        "per_class": [
            {"name": name, **{key: values[i].item() for key, values in scores.items()}}
            for i, name in enumerate(class_names)
        ],
        "macro": {key: float(scores[key][there].mean()) for key in ("precision", "recall", "f1")},
        "confusion": confusion.tolist(),
    }


def confusion_matrix(labels: np.ndarray, guesses: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts each (truth, guess): int64 (C, C), rows are the truth."""
    cells = np.asarray(labels, np.int64) * num_classes + np.asarray(guesses, np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Gives precision, recall, f1 (float, (C,)) and support (int, (C,)) of each class."""
    confusion = np.asarray(confusion)
    hits, support, guessed = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return {
        "precision": _ratio(hits, guessed),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, support + guessed),
        "support": support,
    }


def log_loss(probs: np.ndarray, labels: np.ndarray) -> float:
    """Gives the mean cross-entropy in nats.

    A probability is taken as at least the spacing of its type at 1 (1.2e-7 for float32), where
    softmax has rounded it to 0 and the true loss is lost.
    """
    eps = np.finfo(probs.dtype).eps
    truth = np.clip(probs[np.arange(len(labels)), labels], eps, 1 - eps)
    return float(-np.log(truth.astype(np.float64)).mean())


def top_k_accuracy(probs: np.ndarray, labels: np.ndarray, *, k: int = TOP_K) -> float:
    """Gives the share of examples whose truth is among the k most probable classes."""
    return float((top_classes(probs, k) == np.asarray(labels)[:, None]).any(1).mean())


def top_classes(probs: np.ndarray, k: int = TOP_K) -> np.ndarray:
    """Gives the k most probable classes, best first (N, min(k, C)); the first is the argmax."""
    return np.argsort(-np.asarray(probs), axis=1, kind="stable")[:, :k]


def wilson_interval(correct: int, total: int, *, z: float = Z_95) -> tuple[float, float]:
    """Gives Wilson's interval of a share, 95 % by default.

    It stays inside [0, 1] and says something even where all or none are correct, which the usual
    plus-minus of the normal approximation does not (Wilson 1927, J. Am. Stat. Assoc. 22:209).
    """
    share = correct / total
    middle = share + z**2 / (2 * total)
    reach = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    scale = 1 + z**2 / total
    low, high = (middle - reach) / scale, (middle + reach) / scale
    # At 0 and 1 rounding would leave the share itself just outside its own interval.
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def most_confused(
    confusion: Sequence[Sequence[int]] | np.ndarray, class_names: Sequence[str], *, top: int = 10
) -> list[tuple[str, str, int]]:
    """Lists (truth, guess, count) of the commonest mistakes, most frequent first."""
    wrong = np.array(confusion)
    np.fill_diagonal(wrong, 0)
    cells = np.argsort(-wrong, axis=None, kind="stable")[:top]
    truths, guesses = np.unravel_index(cells, wrong.shape)
    return [
        (class_names[t], class_names[g], int(wrong[t, g]))
        for t, g in zip(truths, guesses, strict=True)
        if wrong[t, g]
    ]


def mcnemar(only_first: int, only_second: int) -> float:
    """Gives the exact two-sided p of McNemar's test for two judges of the same images.

    In: how many images the one named correctly and the other not, and the other way round; those
    on which both agree say nothing. Out: how probable so uneven a split, or a more uneven one, were
    if both were equally good: a fair coin thrown for each such image (McNemar 1947, Psychometrika
    12:153).
    """
    total = only_first + only_second
    ways = tail = 1  # of choosing k of them, from k = 0 on; whole numbers, so nothing is rounded
    for k in range(min(only_first, only_second)):
        ways = ways * (total - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**total)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
