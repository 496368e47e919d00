"""Points out images whose label may be wrong: where a model that never saw them disagrees.

The rule is confident learning's (Northcutt et al., arXiv:1911.00068): a class' threshold is the
mean probability that the model gives it on images that bear its label. An image is pointed out
where the probability of another class reaches that class' threshold, and no class that does so is
likelier. Only a person who looks can say whether the label or the model is wrong.
"""

from typing import NamedTuple

import numpy as np


class LabelIssue(NamedTuple):
    """One image whose label is in doubt."""

    row: int
    """Its place among the rows that were given."""
    suggested: int
    """The class that the model takes it for."""
    margin: float
    """The suggested class' probability minus the label's: the larger, the more in doubt."""


def find_label_issues(probs: np.ndarray, labels: np.ndarray) -> list[LabelIssue]:
    """Lists the images in doubt, the largest margin first.

    `probs` (N, C) must be of images that the model was not trained on: it agrees with the label
    of an image that it learned, right or wrong. A class without images is never suggested.
    """
    probs, labels = np.asarray(probs, np.float64), np.asarray(labels)
    reached = np.where(probs >= class_thresholds(probs, labels), probs, -1.0)
    suggested = reached.argmax(1)
    rows = np.arange(len(labels))
    doubted = (reached[rows, suggested] >= 0) & (suggested != labels)
    margins = probs[rows, suggested] - probs[rows, labels]
    order = np.argsort(-margins, kind="stable")
    return [LabelIssue(int(i), int(suggested[i]), float(margins[i])) for i in order if doubted[i]]


def class_thresholds(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Gives each class' mean probability on the images that bear its label, (C,); inf for none.

    That is the threshold t_j of the paper's equation 2.
    """
    num_classes = probs.shape[1]
    counts = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, probs[np.arange(len(labels)), labels], num_classes)
    return np.divide(sums, counts, out=np.full(num_classes, np.inf), where=counts > 0)
