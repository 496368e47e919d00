"""How much each class counts in the loss, so that a rare one is not simply given up."""

import numpy as np


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Gives N / (C * N_c), float32 (C,): each class counts alike, an example 1 on the average.

    The rule of King and Zeng (2001), and scikit-learn's `class_weight="balanced"`. A class that has
    no example gets 0.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = len(labels) / (num_classes * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 0).astype(np.float32)
