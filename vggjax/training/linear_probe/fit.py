"""Fit a linear head: softmax regression with a squared penalty, by L-BFGS.

The loss is convex, so there is one solution, which no learning rate, number of epochs or order of
the images changes (Liu and Nocedal, "On the limited memory BFGS method", 1989). How strong the
penalty is, the validation images decide. For the fit, features are centered and scaled, each part
(the mean of one convolution, say) by one number: a strength means the same for features of any
size, and no part has more to say because it differs more between images. The weights that are
returned are for the features as given.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

STRENGTHS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
"""Penalties that are tried, the strongest first: half of this times the weights' squared norm, for
features of mean squared length 1."""

WORSE = 1.05
"""Weaker penalties are not tried once the validation loss is this many times the best."""

MIN_THREADED_WORK = 10**9
"""Multiplications in one step below which BLAS has a single thread: on busy cores, threads that
wait for each other took 3.5 to 14 times as long."""

MAX_STEPS, TOLERANCE = 500, 1e-5
"""L-BFGS ends after so many steps, or where every part of the gradient is this small."""


@dataclass(frozen=True)
class LinearFit:
    """A linear head, `features @ weights + bias`, and how it was chosen."""

    weights: np.ndarray
    """float32 (D, C)."""
    bias: np.ndarray
    """float32 (C,)."""
    strength: float
    """The penalty with the lowest validation loss."""
    val_loss: float
    """Mean cross-entropy in nats."""
    val_accuracy: float
    steps: int
    """Of L-BFGS, for the penalty chosen."""

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return the logits (N, C) of features (N, D)."""
        return features @ self.weights + self.bias


def fit_linear(
    features: np.ndarray,
    labels: np.ndarray,
    val_features: np.ndarray,
    val_labels: np.ndarray,
    *,
    num_classes: int | None = None,
    class_weights: np.ndarray | None = None,
    label_smoothing: float = 0.0,
    strengths: Sequence[float] = STRENGTHS,
    widths: Sequence[int] = (),
) -> LinearFit:
    """Fit a linear head to features (N, D), choosing the penalty by the loss on the others.

    Args:
        features: float32 (N, D), finite; every view of an image is a row.
        labels: int (N,).
        val_features: float32 (M, D), M at least 1.
        val_labels: int (M,).
        num_classes: None is one more than the largest label.
        class_weights: (C,), how much an image of each class counts.
        label_smoothing: the share of each label that is spread over all classes.
        strengths: penalties to try, the strongest first; each starts from the one before.
        widths: of the parts of the features, of sum D; () is one part.
    """
    count = int(max(labels.max(), val_labels.max())) + 1 if num_classes is None else num_classes
    center = features.mean(0, dtype=np.float64).astype(np.float32)
    rows = features - center
    scale = _part_scales(rows, widths or (rows.shape[1],))
    rows *= scale
    held_out = (val_features - center) * scale
    targets = np.full((len(labels), count), label_smoothing / count, np.float32)
    targets[np.arange(len(labels)), labels] += 1 - label_smoothing
    weighting = np.ones(count) if class_weights is None else np.asarray(class_weights)
    importance = (weighting[labels] / weighting[labels].sum()).astype(np.float32)

    best: LinearFit | None = None
    start = np.zeros((rows.shape[1] + 1, count))
    for strength in strengths:
        start, steps = minimize_penalized(rows, targets, importance, strength, start)
        kernel = start[:-1] * scale[:, None]
        bias = (start[-1] - center.astype(np.float64) @ kernel).astype(np.float32)
        logits = held_out @ start[:-1].astype(np.float32) + start[-1].astype(np.float32)
        loss, accuracy = score(logits, val_labels)
        if best is None or loss < best.val_loss:
            best = LinearFit(kernel.astype(np.float32), bias, strength, loss, accuracy, steps)
        elif loss > WORSE * best.val_loss:
            break
    assert best is not None, "`strengths` is empty"
    return best


def _part_scales(rows: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """Return a factor for each of D features, float32, which gives all parts the same length.

    The mean squared lengths are 1 / number of parts then, and 1 of all together.
    """
    squares = np.square(rows).mean(0, dtype=np.float64)
    lengths = np.add.reduceat(squares, np.cumsum((0, *widths))[:-1])
    factors = 1 / np.sqrt(np.maximum(lengths * len(widths), 1e-12))
    return np.repeat(factors, widths).astype(np.float32)


def limit_threads(work: int) -> AbstractContextManager:
    """Return a context in which BLAS has one thread, if `work` is below `MIN_THREADED_WORK`."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, "blas") if work < MIN_THREADED_WORK else nullcontext()


def minimize_penalized(
    rows: np.ndarray,
    targets: np.ndarray,
    importance: np.ndarray,
    strength: float,
    start: np.ndarray,
) -> tuple[np.ndarray, int]:
    """Return the parameters (D + 1, C) of the least penalized loss, the bias last, and the steps.

    Args:
        rows: float32 (N, D).
        targets: float32 (N, C), each row a distribution.
        importance: float32 (N,), of sum 1.
        strength: half of it times the squared norm of the weights, not of the bias, is added.
        start: (D + 1, C).
    """
    from scipy.optimize import minimize

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        return penalized_loss(flat.reshape(start.shape), rows, targets, importance, strength)

    options = {"maxiter": MAX_STEPS, "gtol": TOLERANCE, "ftol": 1e-9}
    with limit_threads(2 * rows.size * targets.shape[1]):
        result = minimize(evaluate, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return result.x.reshape(start.shape), int(result.nit)


def penalized_loss(
    params: np.ndarray,
    rows: np.ndarray,
    targets: np.ndarray,
    importance: np.ndarray,
    strength: float,
) -> tuple[float, np.ndarray]:
    """Return the penalized loss of `minimize_penalized` and its gradient, float64, flat."""
    weights, bias = params[:-1].astype(np.float32), params[-1].astype(np.float32)
    log_probs = _log_softmax(rows @ weights + bias)
    losses = -(targets * log_probs).sum(1)
    loss = float((importance * losses).sum(dtype=np.float64))
    penalty = 0.5 * strength * float(np.square(params[:-1]).sum())
    errors = (np.exp(log_probs) - targets) * importance[:, None]
    gradient = np.concatenate([rows.T @ errors, errors.sum(0, keepdims=True)]).astype(np.float64)
    gradient[:-1] += strength * params[:-1]
    return loss + penalty, gradient.ravel()


def score(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the mean cross-entropy in nats and the accuracy."""
    log_probs = _log_softmax(logits.astype(np.float64))
    loss = -log_probs[np.arange(len(labels)), labels].mean()
    return float(loss), float((logits.argmax(1) == labels).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
