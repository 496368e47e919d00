"""ImageNet's 1000 class names, which the published weights' outputs stand for.

imagenet_class_index.json is Keras' file, byte for byte: {"0": ["n01440764", "tench"], ...}.
"""

import functools
import json
from pathlib import Path

import numpy as np


def decode_predictions(probs: np.ndarray, top: int = 5) -> list[list[tuple[str, str, np.floating]]]:
    """Names ImageNet's classes: (wnid, name, probability) of the `top` ones, per image.

    The same as keras.applications' function of that name, without its download.

    Raises:
        ValueError: `probs` is not (N, 1000).
    """
    probs = np.asarray(probs)
    if probs.ndim != 2 or probs.shape[1] != 1000:
        raise ValueError(f"ImageNet's probabilities have the shape (N, 1000); got {probs.shape}.")
    index = imagenet_classes()
    decoded = []
    for row in probs:
        # Keras' order also where two are equal: reversed argsort, then a stable sort.
        best = sorted(row.argsort()[-top:][::-1], key=lambda i: row[i], reverse=True)
        decoded.append([(*index[i], row[i]) for i in best])
    return decoded


@functools.cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """Gives (wnid, name) of the 1000 classes in the order of the published weights' outputs."""
    path = Path(__file__).with_name("imagenet_class_index.json")
    index = json.loads(path.read_text(encoding="utf-8"))
    return tuple(tuple(index[str(i)]) for i in range(1000))
