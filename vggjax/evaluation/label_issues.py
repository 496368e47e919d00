"""Find images whose label may be wrong: where a model that never saw them disagrees.

The rule is confident learning's (Northcutt et al., arXiv:1911.00068): a class' threshold is the
mean probability that the model gives it on images with its label. An image has a label issue if the
probability of another class reaches that class' threshold and is the highest that does. Only a
person who looks can decide whether the label or the model is wrong.
"""

from typing import NamedTuple

import numpy as np


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
