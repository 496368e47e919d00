"""ImageNet's 1000 classes, and networks with published weights that predict them.

imagenet_class_index.json is Keras' file, byte for byte: {"0": ["n01440764", "tench"], ...}.
"""

import functools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vggjax.data.images.preprocess import Preprocessing
from vggjax.errors import ConfigError, WeightsError, printable

if TYPE_CHECKING:
    from vggjax.models.network import VGG
    from vggjax.training.run_dir.run_result import ModelInfo
    from vggjax.weights.weight_file import WeightFile

PUBLISHED_PREPROCESSING = Preprocessing("caffe", 224, "crop", "bicubic")
"""The preprocessing with which the published weights' ImageNet accuracies were measured."""

TORCH_PREPROCESSING = Preprocessing("torch", 224, "crop", "bilinear")
"""The same for torchvision's weights."""


def decode_predictions(probs: np.ndarray, top: int = 5) -> list[list[tuple[str, str, np.floating]]]:
    """Return (wnid, name, probability) of the `top` ImageNet classes, per image.

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
        # Keras' order also for ties: reversed argsort, then a stable sort.
        best = sorted(row.argsort()[-top:][::-1], key=lambda i: row[i], reverse=True)
        decoded.append([(*index[i], row[i]) for i in best])
    return decoded


@functools.cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """Return (wnid, name) of the 1000 classes, in the order of the published weights' outputs."""
    path = Path(__file__).with_name("imagenet_class_index.json")
    index = json.loads(path.read_text(encoding="utf-8"))
    return tuple(tuple(index[str(i)]) for i in range(1000))


def open_published(
    model: str, weights: str, *, expect_sha256: str | None = None
) -> "tuple[VGG, ModelInfo]":
    """Load a network with the published 1000-class top, from `imagenet` or a file.

    Raises:
        ConfigError: an unknown network, or no weights.
        WeightsError: weights that cannot be read, do not fit, or are for other classes.
    """
    from vggjax.models.arch import get_arch
    from vggjax.models.head import PUBLISHED_TOP
    from vggjax.training.run_dir.run_result import ModelInfo
    from vggjax.weights.load import load_pretrained, open_weights

    get_arch(model)
    if weights == "none":
        raise ConfigError(
            "`weights` must be a file or imagenet; none would be an untrained network."
        )
    preprocessing = PUBLISHED_PREPROCESSING
    with open_weights(weights, model, include_top=True, expect_sha256=expect_sha256) as file:
        try:
            network = load_pretrained(model, weights=file, include_top=True)
        except WeightsError as error:
            message = _other_classes_message(file) or str(error)
            raise WeightsError(message, code=error.code) from None
        if weights != "imagenet":
            if file.info.preprocess == "torch":
                preprocessing = TORCH_PREPROCESSING
            preprocessing = replace(preprocessing, mode=file.info.preprocess)
            kind, name = file.known_as or file.info.kind, printable(file.path)
            print(
                f"vggjax: {name}: {kind}, '{file.info.preprocess}' preprocessing, SHA-256 "
                f"{file.digests.sha256}",
                file=sys.stderr,
            )
            if doubt := file.info.preprocess_doubt:
                print(
                    f"vggjax: The preprocessing is uncertain: {printable(doubt)}.", file=sys.stderr
                )
    names = tuple(name for _, name in imagenet_classes())
    return network, ModelInfo(model, str(PUBLISHED_TOP), names, preprocessing)


def _other_classes_message(file: "WeightFile") -> str | None:
    """Return the message for a readable file whose head is not ImageNet's; None for any other."""
    try:
        kernel = file.shapes.get("predictions", {}).get("kernel")
    except (WeightsError, OSError):
        return None
    if kernel is None:
        left_out = "".join(
            f" ({note})" for note in file.notes if note.startswith("left out the top")
        )
        return (
            f"{printable(file.path)} has no classifier of VGG{left_out}, only the convolutional "
            "base, which cannot predict classes. Give the full file, or train one with train.py."
        )
    if kernel[-1] == 1000:
        return None
    return (
        f"{printable(file.path)} has {kernel[-1]} outputs, not ImageNet's 1000, and the names of "
        "its classes are unknown. For a model of train.py give its run folder as `workdir`."
    )
