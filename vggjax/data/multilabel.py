"""Several labels per image: targets, and what is computed from them and from probabilities.

`targets` is bool (N, C), a row per image with any number of labels, none included; `probs` is float
(N, C), one sigmoid each, not normalized. Plain numpy. A class without a positive image has no
score: it is nan, and means leave it out.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

SEPARATOR = "|"
"""Between the labels of an image, wherever they are written as text."""

MIN_COMBINATION = 10
"""Images of a combination of labels that is stratified by itself: a tenth of them is one image."""


def join_labels(class_names: Sequence[str], target: np.ndarray) -> str:
    """Return the names of an image's labels, (C,), as text: `circle|square`."""
    return SEPARATOR.join(class_names[i] for i in np.flatnonzero(target).tolist())


def number_combinations(targets: np.ndarray) -> np.ndarray:
    """Return the number of each image's combination of labels, int32 (N,)."""
    return np.unique(targets, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int32)


def stratification_labels(targets: np.ndarray) -> np.ndarray:
    """Return what to stratify by, int64 (N,): the combination of labels, or the rarest label.

    Images of a combination that fewer than `MIN_COMBINATION` share are stratified by the rarest of
    their labels instead, which iterative stratification distributes first, too (Sechidis et al.,
    "On the Stratification of Multi-label Data", ECML PKDD 2011).
    """
    combinations = number_combinations(targets)
    is_rare = np.bincount(combinations)[combinations] < MIN_COMBINATION
    rarest = np.where(targets, targets.sum(0)[None], len(targets) + 1).argmin(1)
    rarest[~targets.any(1)] = targets.shape[1]
    strata = np.where(is_rare, len(targets) + rarest, combinations)
    return np.unique(strata, return_inverse=True)[1]


def binary_weights(targets: np.ndarray) -> np.ndarray:
    """Return the balanced weight of the absence and of the presence of each class, float32 (C, 2).

    Both weigh the same in the loss, however many images have the label; the mean over the images
    is 1. It is the rule of `balanced_weights` for the two classes of each sigmoid unit.
    """
    counts = np.stack([(~targets).sum(0), targets.sum(0)], axis=1)
    weights = len(targets) / (2 * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 0).astype(np.float32)


def average_precision(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return each class's average precision, float64 (C,); nan without a positive image.

    It is the sum over the distinct probabilities, from the highest down, of the precision times
    the gain in recall; equal probabilities are one step. This is the definition of scikit-learn's
    `average_precision_score`.
    """
    return weighted_average_precision(probs, targets, np.ones((1, len(probs))))[0]


def weighted_average_precision(
    probs: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return `average_precision` with each row of image weights (B, N): float64 (B, C)."""
    scores = np.full((len(weights), targets.shape[1]), np.nan)
    for c, (prob, target) in enumerate(zip(probs.T, targets.T, strict=True)):
        order = np.argsort(-prob, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(prob[order])), len(prob) - 1)
        seen = weights[:, order]
        hits = np.cumsum(seen * target[order], axis=1)[:, ends]
        predicted = np.cumsum(seen, axis=1)[:, ends]
        gains = np.diff(hits, axis=1, prepend=0)
        precision = np.divide(hits, predicted, out=np.zeros(hits.shape), where=predicted > 0)
        total = hits[:, -1]
        np.divide((precision * gains).sum(1), total, out=scores[:, c], where=total > 0)
    return scores


def f1_score(hits: ArrayLike, predicted: ArrayLike, positive: ArrayLike) -> np.ndarray:
    """Return F1 from the numbers of correct, predicted and true labels; 0 without any."""
    total = np.add(predicted, positive, dtype=np.float64)
    return np.divide(np.multiply(hits, 2), total, out=np.zeros(total.shape), where=total > 0)


def choose_thresholds(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the probability from which on each class is predicted, float64 (C,).

    It has the highest F1 on these images and lies in the middle between two probabilities, so
    choose it on images that are not evaluated. A class without a positive image has 0.5.
    """
    thresholds = np.full(targets.shape[1], 0.5)
    for c in np.flatnonzero(targets.any(0)):
        order = np.argsort(-probs[:, c], kind="stable")
        prob, target = probs[order, c].astype(np.float64), targets[order, c]
        ends = np.append(np.flatnonzero(np.diff(prob)), len(prob) - 1)
        scores = f1_score(np.cumsum(target)[ends], ends + 1, np.full(len(ends), target.sum()))
        best = ends[scores.argmax()]
        following = prob[best + 1] if best + 1 < len(prob) else 0.0
        thresholds[c] = (prob[best] + following) / 2
    return thresholds


def mean_score(scores: np.ndarray) -> float:
    """Return the mean over the classes that have a score; nan if none has."""
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) else float("nan")


def log_loss(probs: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean binary cross-entropy over images and classes, in nats."""
    # A sigmoid rounds probabilities below the spacing at 1 (1.2e-7 for float32) to 0.
    eps = np.finfo(probs.dtype).eps
    probs = np.clip(np.where(targets, probs, 1 - probs), eps, 1 - eps)
    return float(-np.log(probs.astype(np.float64)).mean())


def epoch_metrics(probs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Return `loss`, `accuracy`, `f1` and `mAP` of an evaluation within a training.

    `accuracy` is the share of correct labels at 0.5, as Keras' binary accuracy; `f1` is the micro
    F1 at 0.5; `mAP` the mean average precision.
    """
    predicted = probs > 0.5
    hits, is_finite = (predicted & targets).sum(), np.isfinite(probs).all()
    return {
        "loss": log_loss(probs, targets),
        "accuracy": float((predicted == targets).mean()),
        "f1": float(f1_score(hits, predicted.sum(), targets.sum())),
        "mAP": mean_score(average_precision(probs, targets)) if is_finite else float("nan"),
    }
