"""A network with published weights, ready to name ImageNet's 1,000 classes.

The pixels are what the weights expect: Keras' 'caffe', or 'torch' where the file is torchvision's.
"""

import sys
from dataclasses import replace
from pathlib import Path

from vggjax.data.images.preprocess import Preprocessing
from vggjax.errors import ConfigError, WeightsError, printable
from vggjax.evaluation.imagenet import imagenet_classes
from vggjax.models.arch import get_arch
from vggjax.models.head import PUBLISHED_TOP
from vggjax.models.vgg import VGG
from vggjax.training.run_dir.saved_model import ModelInfo

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
    from vggjax.weights.load import load_pretrained

    try:
        network = load_pretrained(
            model, weights=weights, include_top=True, expect_sha256=expect_sha256
        )
    except WeightsError as error:
        if error.code == "E_DIGEST":
            raise
        raise WeightsError(_other_classes(weights) or str(error), code=error.code) from None
    names = tuple(name for _, name in imagenet_classes())
    return network, ModelInfo(model, str(PUBLISHED_TOP), names, _pixels_of(weights))


def _pixels_of(weights: str) -> Preprocessing:
    """Gives the preprocessing of published weights, and tells which file they are."""
    if weights == "imagenet":
        return PUBLISHED_PREPROCESSING
    from vggjax.weights.digests import file_digests
    from vggjax.weights.weight_file import read_facts

    digests, facts = file_digests(Path(weights)), read_facts(weights)
    known = digests.known_as or facts.kind
    print(
        f"vggjax: {printable(weights)}: {known}, '{facts.preprocess}' pixels, SHA-256 {digests.sha256}",
        file=sys.stderr,
    )
    usual = TORCH_PREPROCESSING if facts.preprocess == "torch" else PUBLISHED_PREPROCESSING
    return replace(usual, mode=facts.preprocess)


def _other_classes(weights: str) -> str | None:
    """Words the refusal of a readable file whose head is not ImageNet's; None for any other."""
    from vggjax.weights.weight_file import read_weights

    try:
        kernel = read_weights(weights).get("predictions", {}).get("kernel")
    except (WeightsError, OSError):
        return None
    if kernel is None:
        return (
            f"{printable(weights)} has no classifier, only the convolutional base: nothing can be "
            "predicted from it. Give the full file, or train one with train.py."
        )
    if kernel.shape[-1] == 1000:
        return None
    return (
        f"{printable(weights)} has {kernel.shape[-1]} outputs, not ImageNet's 1000, and does not say "
        "what they mean. For a model of train.py give its folder: --workdir RUN."
    )
