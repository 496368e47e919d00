"""A network with published weights, ready to name ImageNet's 1,000 classes.

The pixels are what the weights expect: Keras' 'caffe', or 'torch' where the file is torchvision's.
"""

import sys
from dataclasses import replace

from vggjax.data.images.preprocess import Preprocessing
from vggjax.errors import ConfigError, WeightsError, printable
from vggjax.evaluation.imagenet import imagenet_classes
from vggjax.models.arch import get_arch
from vggjax.models.head import PUBLISHED_TOP
from vggjax.models.network import VGG
from vggjax.training.run_dir.saved_model import ModelInfo
from vggjax.weights.weight_file import WeightFile

PUBLISHED_PREPROCESSING = Preprocessing("caffe", 224, "crop", "bicubic")
"""What the published weights' ImageNet accuracies were measured with."""

TORCH_PREPROCESSING = Preprocessing("torch", 224, "crop", "bilinear")
"""The same of torchvision's weights."""


def open_published(
    model: str, weights: str, *, expect_sha256: str | None = None
) -> tuple[VGG, ModelInfo]:
    """Loads `imagenet` or a file with the published 1000-class top.

    Raises:
        ConfigError: no such network, or no weights at all.
        WeightsError: weights that cannot be had, that do not fit, or that have other classes.
    """
    get_arch(model)
    if weights == "none":
        raise ConfigError("--weights none is an untrained network; give a file, or imagenet.")
    from vggjax.weights.load import load_pretrained, open_weights

    file = open_weights(weights, model, include_top=True, expect_sha256=expect_sha256)
    try:
        network = load_pretrained(model, weights=file, include_top=True)
    except WeightsError as error:
        raise WeightsError(_other_classes(file) or str(error), code=error.code) from None
    pixels = PUBLISHED_PREPROCESSING if weights == "imagenet" else _pixels_of(file)
    names = tuple(name for _, name in imagenet_classes())
    return network, ModelInfo(model, str(PUBLISHED_TOP), names, pixels)


def _pixels_of(file: WeightFile) -> Preprocessing:
    """Return the preprocessing that the file's weights expect, and print which file it is."""
    mode = file.info.preprocess
    print(
        f"vggjax: {printable(file.path)}: {file.digests.known_as or file.info.kind}, '{mode}' "
        f"pixels, SHA-256 {file.digests.sha256}",
        file=sys.stderr,
    )
    usual = TORCH_PREPROCESSING if mode == "torch" else PUBLISHED_PREPROCESSING
    return replace(usual, mode=mode)


def _other_classes(file: WeightFile) -> str | None:
    """Return the refusal of a readable file whose head is not ImageNet's; None for any other."""
    try:
        kernel = file.shapes.get("predictions", {}).get("kernel")
    except WeightsError:
        return None
    if kernel is None:
        return (
            f"{printable(file.path)} has no classifier, only the convolutional base: nothing can be "
            "predicted from it. Give the full file, or train one with train.py."
        )
    if kernel[-1] == 1000:
        return None
    return (
        f"{printable(file.path)} has {kernel[-1]} outputs, not ImageNet's 1000, and does not say "
        "what they mean. For a model of train.py give its folder: --workdir RUN."
    )
