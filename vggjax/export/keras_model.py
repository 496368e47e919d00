"""Write a classifier as a whole Keras model, a SavedModel or a LiteRT file, by Keras itself.

`images` are uint8 RGB (N, S, S, 3), resized; the layers have the names of `Network`, between
`preprocess` and `probabilities`. A `.keras` file needs no code of this package to be loaded.
"""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # the only one that writes all three

import keras
import numpy as np
from keras import layers

from vggjax.data.images.preprocess import BGR_MEAN, RGB_MEAN, RGB_STD
from vggjax.errors import ConfigError
from vggjax.export.description import write_beside
from vggjax.models.arch import EPSILON
from vggjax.models.network import LUMA, Network
from vggjax.models.params import Weights, extract
from vggjax.training.run_dir.run_result import ModelInfo

_PARAMS = {
    "BatchNormalization": ("scale", "bias", "mean", "var"),
    "Conv2D": ("kernel", "bias"),
    "Dense": ("kernel", "bias"),
}
"""Class of a layer -> this package's names of its arrays, in Keras' order."""


def make_keras(model: Network, info: ModelInfo) -> Any:
    """Return the `keras.Model` of a classifier: uint8 images in, probabilities out."""
    size = info.preprocessing.image_size
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    x = _preprocess(images, info.preprocessing.mode)
    for name in model.layers:
        x = _apply(name, x, model)
    if info.temperature not in (None, 1.0):
        x = layers.Rescaling(1 / info.temperature, name="temperature")(x)
    if info.is_multilabel:
        x = layers.Activation("sigmoid", name="probabilities")(x)
    elif x.shape[-1] == 1:
        second = layers.Activation("sigmoid", name="second_class")(x)
        first = layers.Activation("sigmoid", name="first_class")(-x)
        x = layers.Concatenate(name="probabilities")([first, second])
    else:
        x = layers.Softmax(name="probabilities")(x)
    classifier = keras.Model(images, x, name=info.arch.replace("-", "_"))
    _assign(classifier, extract(model))
    return classifier


def write_keras(path: Path, model: Network, info: ModelInfo, metadata: dict[str, str]) -> None:
    """Write a `.keras` file, and its metadata beside it."""
    make_keras(model, info).save(path)
    write_beside(path, metadata)


def write_saved_model(
    path: Path, model: Network, info: ModelInfo, metadata: dict[str, str]
) -> None:
    """Write a SavedModel with the signature `serve`; metadata in `assets.extra/vggjax.json`."""
    _check_backend()
    make_keras(model, info).export(path, verbose=False)
    (path / "assets.extra").mkdir()
    write_beside(path / "assets.extra" / "vggjax", metadata)


def write_litert(path: Path, model: Network, info: ModelInfo, metadata: dict[str, str]) -> None:
    """Write a `.tflite` file, and its metadata beside it."""
    _check_backend()
    make_keras(model, info).export(path, format="litert", verbose=False)
    write_beside(path, metadata)


def _check_backend() -> None:
    """Refuse any backend but TensorFlow, and keep that from the accelerator, which is JAX's."""
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            f"Keras writes this format with TensorFlow only, and uses {keras.backend.backend()}. "
            "Set KERAS_BACKEND=tensorflow."
        )
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)


def _preprocess(images: Any, mode: str) -> Any:
    """Apply `preprocess` of data/images/preprocess.py as layers."""
    if mode == "caffe":
        pixels = keras.ops.flip(layers.Rescaling(1.0, name="to_float")(images), axis=-1)
        return layers.Rescaling(1.0, offset=[-x for x in BGR_MEAN], name="preprocess")(pixels)
    if mode == "unit":
        return layers.Rescaling(1 / 255, name="preprocess")(images)
    means = zip(RGB_MEAN, RGB_STD, strict=True)
    offset = [-mean / std for mean, std in means]
    scale = [1 / (255 * std) for std in RGB_STD]
    return layers.Rescaling(scale, offset=offset, name="preprocess")(images)


def _apply(name: str, x: Any, model: Network) -> Any:
    """Apply the layer `name` of `Network` to `x`, NHWC."""
    if name == "gray":
        return layers.Conv2D(1, 1, use_bias=False, name=name)(x)
    if "_conv" in name:
        filters = model.arch.conv_channels()[name][1]
        is_last = name.replace("_conv", "_bn") not in model.layers
        activation = "relu" if is_last else None
        padding = model.arch.padding.lower()
        return layers.Conv2D(filters, 3, padding=padding, activation=activation, name=name)(x)
    if "_bn" in name:
        x = layers.BatchNormalization(epsilon=EPSILON, name=name)(x)
        return layers.ReLU(name=f"{name}_relu")(x)
    if name.endswith("_pool"):
        return layers.MaxPooling2D(name=name)(x)
    if name == "avg2":
        return layers.AveragePooling2D(2, name=name)(x)
    if name == "gap":
        return layers.GlobalAveragePooling2D(name=name)(x)
    if name == "flatten":
        return layers.Flatten(name=name)(x)
    if name == "predictions":
        assert model.head is not None
        return layers.Dense(model.head.outputs, name=name)(x)
    if name.startswith("fc"):
        assert model.head is not None
        width = model.head.hidden[int(name.removeprefix("fc")) - 1]
        return layers.Dense(width, activation="relu", name=name)(x)
    return x  # dropout


def _assign(classifier: Any, weights: Weights) -> None:
    for layer in classifier.layers:
        if layer.name == "gray":
            layer.set_weights([np.array(LUMA, np.float32).reshape(1, 1, 3, 1)])
        elif names := _PARAMS.get(type(layer).__name__):
            layer.set_weights([weights[layer.name][name] for name in names])
