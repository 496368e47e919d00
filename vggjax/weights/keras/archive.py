"""Writes `.keras`, which `keras.models.load_model` opens: a VGG's layers one after another.

The archive's configuration is made here from the layers' shapes, so that no Keras is needed: a
`Sequential` under Keras' own names, relu in the convolutions (or behind the batch normalizations),
the last layer a softmax, or a sigmoid where it has one output. Dropout, which predicting does not
use, is left out. Pixels are for the caller to prepare, as with Keras' own VGG.
"""

import json
import math
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggjax.errors import WeightsError, printable
from vggjax.models.arch import EPSILON
from vggjax.weights.keras.write import write_weights_h5
from vggjax.weights.names import TABLE_NAME, in_base, order

if TYPE_CHECKING:
    from vggjax.models.params import Weights

_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the same weights give the same bytes


def write_keras(path: Path, weights: "Weights", metadata: dict[str, str]) -> None:
    """Writes an archive of a configuration, which names and shapes decide, and the weights.

    Raises:
        WeightsError: layers that make no VGG.
    """
    config = json.dumps(_model(weights, metadata))
    unpacked = path.with_name(f"{path.name}.h5")
    try:
        write_weights_h5(unpacked, weights, metadata)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(_member("metadata.json"), json.dumps({"keras_version": "3.5.0"}))
            archive.writestr(_member("config.json"), config)
            member = _member("model.weights.h5")
            member.file_size = unpacked.stat().st_size  # beyond 2 GB the archive has another form
            with unpacked.open("rb") as source, archive.open(member, "w") as target:
                shutil.copyfileobj(source, target, 2**20)
    finally:
        unpacked.unlink(missing_ok=True)


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _LONG_AGO)
    member.external_attr = 0o644 << 16
    return member


def _model(weights: "Weights", metadata: dict[str, str]) -> dict[str, Any]:
    layers = sorted(weights, key=order)
    if strange := [layer for layer in layers if not TABLE_NAME.fullmatch(layer)]:
        raise WeightsError(
            f"The layer {printable(strange[0])!r} is none of a VGG's, of which alone a .keras is made; "
            f".weights.h5 holds any.",
            code="E_NAME",
        )
    base, top = [k for k in layers if in_base(k)], [k for k in layers if not in_base(k)]
    convs = [layer for layer in base if "_conv" in layer]
    if not convs or any("kernel" not in weights[layer] for layer in (*convs, *top)):
        raise WeightsError(
            "These weights lack layers of a VGG, of which alone a .keras is made.",
            code="E_MISSING",
        )
    pooling, size = _pooling(weights, convs[-1], top, metadata)
    inputs = [None, size, size, weights[convs[0]]["kernel"].shape[2]]
    config = [_layer("InputLayer", "input_1", batch_shape=inputs, dtype="float32")]
    for layer, following in zip(base, [*base[1:], ""], strict=True):
        config += _base_layer(layer, weights, norm=layer.replace("conv", "bn") in base)
        block = layer.split("_")[0]
        if not following.startswith(f"{block}_"):
            config.append(_layer("MaxPooling2D", f"{block}_pool", pool_size=[2, 2]))
    config += pooling
    for layer in top:
        last = "sigmoid" if weights[layer]["kernel"].shape[-1] == 1 else "softmax"
        config.append(
            _layer(
                "Dense",
                layer,
                units=weights[layer]["kernel"].shape[-1],
                activation=last if layer == "predictions" else "relu",
                use_bias="bias" in weights[layer],
            )
        )
    name = metadata.get("arch", "vgg")
    return {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": name, "trainable": True, "layers": config},
        "registered_name": None,
        "build_config": {"input_shape": inputs},
    }


def _base_layer(layer: str, weights: "Weights", *, norm: bool) -> list[dict[str, Any]]:
    if "_bn" in layer:
        relu = layer.replace("bn", "relu")
        return [
            _layer("BatchNormalization", layer, epsilon=EPSILON, momentum=0.9),
            _layer("Activation", relu, activation="relu"),
        ]
    kernel = weights[layer]["kernel"]
    activation = "linear" if norm else "relu"
    return [
        _layer(
            "Conv2D",
            layer,
            filters=kernel.shape[-1],
            kernel_size=list(kernel.shape[:2]),
            padding="same",
            activation=activation,
            use_bias="bias" in weights[layer],
        )
    ]


def _pooling(
    weights: "Weights", last: str, top: list[str], metadata: dict[str, str]
) -> tuple[list[dict[str, Any]], int | None]:
    """Gives the layers between the base and the dense ones, and the side of the images in px."""
    if not top:
        return [], None
    inputs, width = weights[top[0]]["kernel"].shape[0], weights[last]["kernel"].shape[-1]
    side = math.isqrt(inputs // width)
    if side**2 * width != inputs:
        raise WeightsError(
            f"{top[0]}'s kernel takes {inputs:,} inputs, which is no square map of {width} "
            f"channels.",
            code="E_SHAPE",
        )
    pooling = metadata.get("head", "gap" if side == 1 else "flatten").split("-")[0]
    if pooling == "gap" and side == 1:
        return [_layer("GlobalAveragePooling2D", "gap")], None
    window = 2 if pooling == "avg2" else 1
    before = [_layer("AveragePooling2D", "avg2", pool_size=[2, 2])] if window == 2 else []
    noted = metadata.get("image_size", "")
    size = 32 * window * side
    # Images of other sizes may give the same map, and the size of the training is the best.
    if noted.isdecimal() and int(noted) // 32 // window == side:
        size = int(noted)
    return [*before, _layer("Flatten", "flatten")], size


def _layer(kind: str, name: str, **config: Any) -> dict[str, Any]:
    return {
        "module": "keras.layers",
        "class_name": kind,
        "config": {"name": name, **config},
        "registered_name": None,
    }
