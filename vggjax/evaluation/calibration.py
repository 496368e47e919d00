"""Tells whether a model's probabilities can be believed, and what one number would mend of it.

Reliability diagram, expected calibration error and temperature scaling are those of Guo et al.,
"On Calibration of Modern Neural Networks" (arXiv:1706.04599). In: probabilities (N, C) and labels
(N,), or the confidence of each guess and whether it was right. Out: plain numbers. numpy alone.
"""

from dataclasses import dataclass

import numpy as np

NUM_BINS = 15
"""As many equal steps of confidence as in the paper."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Where the search for a temperature ends: a model that is never wrong would like it at 0."""


@dataclass(frozen=True)
class Reliability:
    """How often guesses of one confidence were right; bins without guesses are left out."""

    confidence: tuple[float, ...]
    """Mean probability of the guesses in each bin."""
    accuracy: tuple[float, ...]
    """The share of them that was right."""
    counts: tuple[int, ...]
    edges: tuple[tuple[float, float], ...]
    ece: float
    """Expected calibration error: the mean gap of the two, each guess counting alike."""
    mean_confidence: float


def reliability(
    confidence: np.ndarray, correct: np.ndarray, *, num_bins: int = NUM_BINS
) -> Reliability:
    """Sorts guesses by their probability, (N,) in [0, 1], and compares it with what came true.

    A bin holds (low, high], the first one 0 as well. `correct` is (N,) of 0 and 1.
    """
    confidence = np.asarray(confidence, np.float64)
    correct = np.asarray(correct, np.float64)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(
            f"confidence and correct must both be (N,) with N from 1; got {confidence.shape} and "
            f"{correct.shape}."
        )
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    there = counts > 0
    sure = np.bincount(bins, confidence, num_bins)[there] / counts[there]
    right = np.bincount(bins, correct, num_bins)[there] / counts[there]
    return Reliability(
        tuple(sure.tolist()),
        tuple(right.tolist()),
        tuple(counts[there].tolist()),
        tuple((float(edges[i]), float(edges[i + 1])) for i in np.flatnonzero(there)),
        float(np.average(np.abs(right - sure), weights=counts[there])),
        float(confidence.mean()),
    )


def chance_ece(confidence: np.ndarray, *, num_bins: int = NUM_BINS, draws: int = 200) -> float:
    """Gives the ECE that an honest model of the same confidences shows by chance, on average.

    With few images in a bin the share that was right scatters, so that no model reaches 0.
    """
    rng = np.random.default_rng(0)
    confidence = np.asarray(confidence, np.float64)
    drawn = rng.random((draws, len(confidence))) < confidence
    return float(np.mean([reliability(confidence, row, num_bins=num_bins).ece for row in drawn]))


def fit_temperature(probs: np.ndarray, labels: np.ndarray) -> float:
    """Finds the temperature that makes these labels most probable: logits are divided by it.

    Above 1 the model was too sure, below 1 not sure enough. The loss is convex in 1/T, so that its
    slope has one root, which is halved in on. Fit it on a split that is not judged: validation.
    """
    logits = np.log(_floor(probs))
    true = logits[np.arange(len(labels)), labels]

    def slope(scale: float) -> float:
        return float(((_softmax(scale * logits) * logits).sum(1) - true).mean())

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(1 / (low * high) ** 0.5)


def at_temperature(probs: np.ndarray, temperature: float) -> np.ndarray:
    """Gives the probabilities (N, C) with the logits divided by the temperature.

    Which class comes first does not change.
    """
    return _softmax(np.log(_floor(probs)) / temperature)


def _floor(probs: np.ndarray) -> np.ndarray:
    # Logits are log-probabilities but for a constant. Softmax rounds to 0 below 1e-38.
    return np.maximum(np.asarray(probs, np.float64), np.finfo(np.float32).tiny)


def _softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)
