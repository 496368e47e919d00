"""Measure whether a model's probabilities can be trusted, and fit the temperature that helps.

Reliability diagram, expected calibration error (ECE) and temperature scaling are those of Guo et
al., "On Calibration of Modern Neural Networks" (arXiv:1706.04599). In: probabilities (N, C) and
labels (N,), or the confidence of each prediction and whether it was correct. Out: plain numbers. Of
several labels per image each probability is a sigmoid, and the labels are bool (N, C).
"""

from dataclasses import dataclass

import numpy as np

NUM_BINS = 15
"""Equal-width bins of confidence, as many as in the paper."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Bounds of the fit: for a model that is never wrong the best temperature would be 0."""


@dataclass(frozen=True)
class Reliability:
    """Accuracy by confidence, in bins; empty bins are left out."""

    confidence: tuple[float, ...]
    """Mean confidence of the predictions in each bin."""
    accuracy: tuple[float, ...]
    """Share of them that is correct."""
    counts: tuple[int, ...]
    edges: tuple[tuple[float, float], ...]
    ece: float
    """Expected calibration error: the mean gap of the two, weighted by `counts`."""
    mean_confidence: float


def reliability(
    confidence: np.ndarray, correct: np.ndarray, *, num_bins: int = NUM_BINS
) -> Reliability:
    """Bin predictions by confidence, (N,) in [0, 1], and compare it with their accuracy.

    A bin is (low, high], the first one includes 0. `correct` is (N,) of 0 and 1; N is at least 1.
    """
    confidence = np.asarray(confidence, np.float64)
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    all_counts = np.bincount(bins, minlength=num_bins)
    filled = all_counts > 0
    counts = all_counts[filled]
    mean_confidence = np.bincount(bins, confidence, num_bins)[filled] / counts
    accuracy = np.bincount(bins, correct, num_bins)[filled] / counts
    return Reliability(
        tuple(mean_confidence.tolist()),
        tuple(accuracy.tolist()),
        tuple(counts.tolist()),
        tuple((float(edges[i]), float(edges[i + 1])) for i in np.flatnonzero(filled)),
        float(np.average(np.abs(accuracy - mean_confidence), weights=counts)),
        float(confidence.mean()),
    )


def chance_ece(confidence: np.ndarray) -> float:
    """Return the expected ECE of a perfectly calibrated model with these confidences.

    With few predictions in a bin its accuracy scatters, so that no model reaches 0.
    """
    drawn = np.random.default_rng(0).random((200, len(confidence))) < confidence
    return float(np.mean([reliability(confidence, row).ece for row in drawn]))


def fit_temperature(probs: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature, which divides logits, with the lowest loss on these labels.

    Above 1 the model is overconfident, below 1 underconfident. Fit it on a split that is not
    evaluated: validation. The loss is convex in 1/T, so that its derivative has one root.
    """
    from scipy.optimize import brentq

    logits = _logits(probs)
    true_class_logits = logits[np.arange(len(labels)), labels]

    def slope(scale: float) -> float:
        return float(((_softmax(scale * logits) * logits).sum(1) - true_class_logits).mean())

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    return 1 / brentq(slope, low, high)


def choose_temperature(probs: np.ndarray, labels: np.ndarray) -> float:
    """Return the fitted temperature if it helps on images that it was not fitted on, else 1.

    One half of the images has the temperature of the other half, and the other way round: the mean
    loss must be lower than without. A temperature at a bound of the fit never helps.
    """
    multilabel = labels.ndim == 2

    def fit(rows: np.ndarray) -> float:
        pairs = _binary(probs[rows], labels[rows]) if multilabel else (probs[rows], labels[rows])
        return fit_temperature(*pairs)

    def losses(rows: np.ndarray, temperature: float) -> np.ndarray:
        scaled = at_temperature(probs[rows], temperature, multilabel=multilabel)
        if multilabel:
            return -np.log(np.where(labels[rows], scaled, 1 - scaled)).mean(1)
        return -np.log(scaled[np.arange(len(rows)), labels[rows]])

    every = np.arange(len(labels))
    temperature = fit(every)
    if temperature in (MIN_TEMPERATURE, MAX_TEMPERATURE) or len(labels) < 2:
        return 1.0
    order = every if multilabel else np.argsort(labels, kind="stable")
    halves = order[::2], order[1::2]  # each with half of the images of every class
    with np.errstate(divide="ignore"):  # a certain mistake has an infinite loss
        scaled = [losses(half, fit(rest)) for half, rest in (halves, halves[::-1])]
        before = losses(every, 1.0)
    helps = np.concatenate(scaled).mean() < before.mean()
    return temperature if helps else 1.0


def at_temperature(
    probs: np.ndarray, temperature: float, *, multilabel: bool = False
) -> np.ndarray:
    """Return the probabilities (N, C) with logits divided by the temperature; same argmax.

    With `multilabel`, any shape of sigmoids; their order stays the same.
    """
    if multilabel:
        flat = np.ravel(probs)
        pairs, _ = _binary(flat, np.zeros(flat.shape, bool))
        return _softmax(_logits(pairs) / temperature)[:, 1].reshape(np.shape(probs))
    return _softmax(_logits(probs) / temperature)


def _binary(probs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sigmoids as probabilities (M, 2) of absence and presence, and the labels (M,)."""
    # A sigmoid rounds to 1 from 1 - 2^-25 on.
    present = np.minimum(np.ravel(probs).astype(np.float64), 1 - 2.0**-25)
    return np.stack([1 - present, present], 1), np.ravel(targets).astype(np.int64)


def _logits(probs: np.ndarray) -> np.ndarray:
    # Logits are log-probabilities up to a constant. Softmax rounds to 0 below 1e-38.
    return np.log(np.maximum(np.asarray(probs, np.float64), np.finfo(np.float32).tiny))


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)
