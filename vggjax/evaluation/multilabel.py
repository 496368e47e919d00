"""Evaluate images with several labels each: metrics, predictions.csv and label issues.

In: probs (N, C), a sigmoid each; targets bool (N, C); thresholds (C,), or (N, C) where models with
thresholds of their own evaluated the images. Out: plain Python numbers, ready for JSON. A class
without a positive image here has scores of 0 and support 0, and the means leave it out.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vggjax.csv_text import csv_line
from vggjax.data.multilabel import (
    average_precision,
    f1_score,
    join_labels,
    log_loss,
    mean_score,
    weighted_average_precision,
)
from vggjax.errors import printable
from vggjax.evaluation.metrics import find_label_issues, wilson_interval

COLUMNS = ("id", "split", "truth", "guess", "missing", "extra", "loss", "correct")
"""Of predictions.csv, before a column per class with its probability: `missing` and `extra` are the
wrong labels, `loss` is the image's cross-entropy, `correct` tells whether all labels are right."""

_MAX_SAMPLES, _MIN_SAMPLES, _WORK = 1000, 200, 10**8
"""Bootstrap samples: as many as the work, samples times images times classes, allows."""


def summarize(
    probs: np.ndarray, targets: np.ndarray, thresholds: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """Compute all metrics of one evaluation.

    Returns:
        task, num_examples, loss (nats, mean over images and classes), accuracy (share of correct
        labels over images and classes), exact_match (share of images with all labels right) and
        exact_match_interval, mAP, micro and macro {precision, recall, f1}, mAP_interval and
        macro_f1_interval [low, high] (95 %, bootstrap), per_class [{name, threshold, precision,
        recall, f1, average_precision, support}], cooccurrence (C lists of C numbers of images that
        have both labels) and predicted_cooccurrence, the same of the predictions.
    """
    predicted = probs >= thresholds
    exact = int((predicted == targets).all(1).sum())
    counts = (predicted & targets).sum(0), predicted.sum(0), targets.sum(0)
    scores = _scores(*counts) | {"average_precision": average_precision(probs, targets)}
    micro = _scores(*(count.sum() for count in counts))
    means = {"mAP": mean_score(scores["average_precision"]), "macro_f1": mean_score(scores["f1"])}
    by_class = np.atleast_2d(thresholds).mean(0).tolist()
    return {
        "task": "multilabel",
        "num_examples": len(targets),
        "loss": log_loss(probs, targets),
        "accuracy": float((predicted == targets).mean()),
        "exact_match": exact / len(targets),
        "exact_match_interval": list(wilson_interval(exact, len(targets))),
        "mAP": means["mAP"],
        "micro": {key: float(value) for key, value in micro.items()},
        "macro": {key: mean_score(scores[key]) for key in micro},
        **_intervals(probs, targets, predicted, means),
        "per_class": [
            {"name": name, "threshold": by_class[i]}
            | {key: float(np.nan_to_num(scores[key][i])) for key in scores}
            | {"support": int(counts[2][i])}
            for i, name in enumerate(class_names)
        ],
        "cooccurrence": _cooccurrence(targets),
        "predicted_cooccurrence": _cooccurrence(predicted),
    }


def _scores(hits: np.ndarray, predicted: np.ndarray, support: np.ndarray) -> dict[str, np.ndarray]:
    """Return precision, recall and F1: nan without a positive image, 0 without a prediction."""
    scores = {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": f1_score(hits, predicted, support),
    }
    return {name: np.where(support > 0, score, np.nan) for name, score in scores.items()}


def _intervals(
    probs: np.ndarray, targets: np.ndarray, predicted: np.ndarray, means: dict[str, float]
) -> dict[str, list[float]]:
    """Return the 95 % percentile intervals of mAP and macro F1, from resampled images."""
    num_images = len(targets)
    num_samples = int(np.clip(_WORK // targets.size, _MIN_SAMPLES, _MAX_SAMPLES))
    share = np.full(num_images, 1 / num_images)
    weights = np.random.default_rng(0).multinomial(num_images, share, num_samples).astype(float)
    counts = (weights @ labels for labels in (predicted & targets, predicted, targets))
    samples = {
        "mAP": weighted_average_precision(probs, targets, weights),
        "macro_f1": _scores(*counts)["f1"],
    }
    intervals = {}
    for name, scores in samples.items():
        values = [value for row in scores if not np.isnan(value := mean_score(row))]
        low, high = np.quantile(values, (0.025, 0.975)).tolist()
        intervals[f"{name}_interval"] = [min(low, means[name]), max(high, means[name])]
    return intervals


def _cooccurrence(labels: np.ndarray) -> list[list[int]]:
    return (labels.T.astype(np.int64) @ labels.astype(np.int64)).tolist()


def prediction_lines(
    rows: Sequence[tuple[str, np.ndarray, np.ndarray]],
    split: str,
    *,
    thresholds: np.ndarray,
    class_names: Sequence[str],
) -> list[str]:
    """Return the lines of predictions.csv; `rows` have id, target (C,) and probabilities (C,)."""
    names = tuple(map(printable, class_names))
    lines = [csv_line([*COLUMNS, *names])]
    for image_id, target, probs in rows:
        guess = probs >= thresholds
        labels = target, guess, target & ~guess, guess & ~target
        texts = [join_labels(names, which) for which in labels]
        loss = log_loss(probs[None], target[None])
        correct = int((guess == target).all())
        shares = (f"{prob:.6f}" for prob in probs)
        lines.append(
            csv_line([printable(image_id), split, *texts, f"{loss:.6f}", correct, *shares])
        )
    return lines


def describe(result: dict[str, Any], images: str) -> str:
    """Return the metrics of `summarize` as a line for the screen, with rich's markup."""
    low, high = result["mAP_interval"]
    f1_low, f1_high = result["macro_f1_interval"]
    return (
        f"[bold]mAP {result['mAP']:.1%}[/] (95% interval {low:.1%} to {high:.1%}) on "
        f"{result['num_examples']:,} {images}, macro F1 {result['macro']['f1']:.1%} ({f1_low:.1%} "
        f"to {f1_high:.1%}), micro F1 {result['micro']['f1']:.1%}, loss {result['loss']:.3f}; all "
        f"labels right on {result['exact_match']:.1%} of the images"
    )


class MultilabelIssue(NamedTuple):
    """One label of one image that is in doubt."""

    row: int
    """The index of the image in `probs`."""
    label: int
    """The class."""
    is_missing: bool
    """Whether the model would add the label; otherwise it would remove it."""
    margin: float
    """The suggestion's probability minus its opposite's; larger means more doubt."""


def find_multilabel_issues(probs: np.ndarray, targets: np.ndarray) -> list[MultilabelIssue]:
    """Return the labels in doubt, the largest margin first.

    Each class is a choice between absence and presence, to which `find_label_issues` applies.
    """
    issues = []
    for label, (prob, target) in enumerate(zip(probs.T, targets.T, strict=True)):
        found = find_label_issues(np.stack([1 - prob, prob], 1), target.astype(np.int64))
        issues += [MultilabelIssue(x.row, label, bool(x.suggested), x.margin) for x in found]
    return sorted(issues, key=lambda issue: -issue.margin)
