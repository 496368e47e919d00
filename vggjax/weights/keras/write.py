"""Write the formats of Keras: the published legacy `.h5`, `.weights.h5` and `.keras`.

The weights come in the layer table's order, and each layer's parameters in Keras' order.

Keras' `load_weights` takes the first two, the legacy one by name too, and `load_model` the third.
layers.py describes the layouts. This package's metadata (preprocessing, class names, provenance)
lie beside the weights, where Keras ignores them.

The configuration in a `.keras` is made from the layers' shapes, without Keras: a `Sequential` with
Keras' layer names, relu in the convolutions (or after the batch normalizations), and a softmax in
the last layer, or a sigmoid where it has one output. Dropout is left out, as inference does not use
it. The caller preprocesses the pixels, as with Keras' own VGG.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vggjax.errors import WeightsError, printable
from vggjax.models.arch import EPSILON
from vggjax.weights.names import TABLE_NAME, Layer, in_base

if TYPE_CHECKING:
    import h5py

    from vggjax.models.params import Weights

MEMBER = "model.weights.h5"
"""The member of a `.keras` that holds the weights."""

METADATA = "vggjax"
"""The attribute of the root group that holds this package's metadata, as JSON."""

_MAX_METADATA_BYTES = 60_000
"""An attribute holds at most 64 KiB; of longer metadata the longest texts are left out."""

_TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # a constant: the same weights give the same bytes


class _Sink(io.FileIO):
    """A file that accepts whatever HDF5 writes, and keeps the first failure in `error`.

    The HDF5 library alone would crash on a full disk.
    """

    error: OSError | None = None

    def readinto(self, buffer: Any) -> int:
        """Fill the whole buffer, with zeros where a failure has left a hole."""
        count = super().readinto(buffer) or 0
        buffer[count:] = bytes(len(buffer) - count)
        return len(buffer)

    def write(self, buffer: Any) -> int:
        """Write the whole buffer, or nothing once something has failed."""
        rest = memoryview(buffer)
        try:
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return len(buffer)

    def truncate(self, size: int | None = None) -> int:
        """Set the file's length, or do nothing once something has failed."""
        size = self.tell() if size is None else size
        try:
            if self.error is None:
                super().truncate(size)
        except OSError as error:
            self.error = error
        return size


@contextlib.contextmanager
def _create_hdf5(path: Path) -> Iterator[h5py.File]:
    """Create an HDF5 file, or replace one.

    Raises:
        OSError: it cannot be written, as on a full disk; the file is then unusable.
    """
    import h5py

    with _Sink(path, "w+") as sink:
        try:
            with h5py.File(sink, "w") as root:
                yield root
        finally:
            if sink.error is not None:
                raise sink.error from None


def write_legacy_h5(path: Path, weights: Weights, metadata: dict[str, str]) -> None:
    """Write the layout of the published files: `/block1_conv1/block1_conv1_W_1:0`."""
    suffixes = {
        "kernel": "W_1", "scale": "gamma_1", "mean": "moving_mean_1", "var": "moving_variance_1"
    }  # fmt: skip
    with _create_hdf5(path) as file:
        _write_metadata(file, metadata)
        layers = _with_plain_layers(weights)
        file.attrs["layer_names"] = np.array(layers, dtype="S")
        file.attrs["backend"] = np.bytes_("tensorflow")
        file.attrs["keras_version"] = np.bytes_("2.0.0")  # Keras then converts nothing
        for layer in layers:
            group, params = file.create_group(layer), weights.get(layer, {})
            bias = "b_1" if "kernel" in params else "beta_1"
            stored = {
                f"{layer}_{bias if param == 'bias' else suffixes[param]}:0": array
                for param, array in params.items()
            }
            group.attrs["weight_names"] = np.array(list(stored), dtype="S")
            for key, array in stored.items():
                group.create_dataset(key, data=array)


def write_weights_h5(path: Path, weights: Weights, metadata: dict[str, str]) -> None:
    """Write Keras 3's `.weights.h5`: `/layers/conv2d/vars/0`, numbered by class in order."""
    counts: dict[str, int] = {}
    classes = {"conv": "conv2d", "dense": "dense"}
    with _create_hdf5(path) as file:
        _write_metadata(file, metadata)
        for layer, params in weights.items():
            kind = classes.get(Layer(layer, params).kind, "batch_normalization")
            number = counts[kind] = counts.get(kind, -1) + 1
            group = file.create_group(f"layers/{kind}{f'_{number}' if number else ''}/vars")
            group.attrs["name"] = layer
            for i, array in enumerate(params.values()):
                group.create_dataset(str(i), data=array)


def write_keras(path: Path, weights: Weights, metadata: dict[str, str]) -> None:
    """Write a `.keras` archive: a configuration made from names and shapes, and the weights."""
    config = json.dumps(_model_config(weights, metadata))
    unpacked = path.with_name(f"{path.name}.h5")
    try:
        write_weights_h5(unpacked, weights, metadata)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(_member("metadata.json"), json.dumps({"keras_version": "3.5.0"}))
            archive.writestr(_member("config.json"), config)
            member = _member(MEMBER)
            member.file_size = unpacked.stat().st_size  # above 2 GB the archive has another form
            with unpacked.open("rb") as source, archive.open(member, "w") as target:
                shutil.copyfileobj(source, target, 2**20)
    finally:
        unpacked.unlink(missing_ok=True)


def _write_metadata(file: h5py.File, metadata: dict[str, str]) -> None:
    metadata = dict(metadata)
    while metadata and len(text := json.dumps(metadata, sort_keys=True)) > _MAX_METADATA_BYTES:
        metadata.pop(max(metadata, key=lambda key: len(metadata[key])))  # thousands of classes
    if metadata:
        file.attrs[METADATA] = np.bytes_(text.encode())


def _with_plain_layers(weights: Weights) -> list[str]:
    """Return the layers, and between them those without weights that the published files list."""
    layers = list(weights)
    if not all(map(TABLE_NAME.fullmatch, layers)):
        return layers
    listed = ["input_1"]
    for layer, following in zip(layers, [*layers[1:], ""], strict=True):
        listed.append(layer)
        block = layer.split("_")[0]
        if in_base(layer) and not following.startswith(f"{block}_"):
            listed.append(f"{block}_pool")
            listed += ["flatten"] if following and not in_base(following) else []
    return listed


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _TIMESTAMP)
    member.external_attr = 0o644 << 16
    return member


def _model_config(weights: Weights, metadata: dict[str, str]) -> dict[str, Any]:
    """Return the configuration of a Keras `Sequential` with these weights."""
    if unknown := [layer for layer in weights if not TABLE_NAME.fullmatch(layer)]:
        raise WeightsError(
            f"A .keras holds a VGG, and {printable(unknown[0])!r} is not one of its layers. "
            f"A .weights.h5 holds any layers.",
            code="E_NAME",
        )
    base, top = [k for k in weights if in_base(k)], [k for k in weights if not in_base(k)]
    convs = [layer for layer in base if "_conv" in layer]
    if not convs or any("kernel" not in weights[layer] for layer in (*convs, *top)):
        raise WeightsError(
            "A .keras holds a whole VGG, and these weights lack layers of one.", code="E_MISSING"
        )
    pooling, image_size = _pooling(weights, convs[-1], top, metadata)
    inputs = [None, image_size, image_size, weights[convs[0]]["kernel"].shape[2]]
    config = [_layer("InputLayer", "input_1", batch_shape=inputs, dtype="float32")]
    for layer, following in zip(base, [*base[1:], ""], strict=True):
        config += _base_layer(layer, weights, batch_norm=layer.replace("conv", "bn") in base)
        block = layer.split("_")[0]
        if not following.startswith(f"{block}_"):
            config.append(_layer("MaxPooling2D", f"{block}_pool", pool_size=[2, 2]))
    config += pooling
    config += [_dense_layer(layer, weights) for layer in top]
    return {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": metadata.get("arch", "vgg"), "trainable": True, "layers": config},
        "registered_name": None,
        "build_config": {"input_shape": inputs},
    }


def _base_layer(layer: str, weights: Weights, *, batch_norm: bool) -> list[dict[str, Any]]:
    if "_bn" in layer:
        relu = layer.replace("bn", "relu")
        return [
            _layer("BatchNormalization", layer, epsilon=EPSILON, momentum=0.9),
            _layer("Activation", relu, activation="relu"),
        ]
    kernel = weights[layer]["kernel"]
    return [
        _layer(
            "Conv2D",
            layer,
            filters=kernel.shape[-1],
            kernel_size=list(kernel.shape[:2]),
            padding="same",
            activation="linear" if batch_norm else "relu",
            use_bias="bias" in weights[layer],
        )
    ]


def _dense_layer(layer: str, weights: Weights) -> dict[str, Any]:
    units = weights[layer]["kernel"].shape[-1]
    last = "sigmoid" if units == 1 else "softmax"
    activation = last if layer == "predictions" else "relu"
    use_bias = "bias" in weights[layer]
    return _layer("Dense", layer, units=units, activation=activation, use_bias=use_bias)


def _pooling(
    weights: Weights, last_conv: str, top: list[str], metadata: dict[str, str]
) -> tuple[list[dict[str, Any]], int | None]:
    """Return the layers between the base and the dense layers, and the image size in pixels."""
    if not top:
        return [], None
    if metadata.get("head", "").startswith("convs"):
        raise WeightsError(
            f"The head {metadata['head']} pools several layers, which Keras' Sequential model "
            "cannot hold. Write .safetensors or .weights.h5.",
            code="E_SHAPE",
        )
    inputs, width = weights[top[0]]["kernel"].shape[0], weights[last_conv]["kernel"].shape[-1]
    side = math.isqrt(inputs // width)
    if side**2 * width != inputs:
        raise WeightsError(
            f"{top[0]}'s kernel takes {inputs:,} inputs, which is not a square map of {width} "
            f"channels.",
            code="E_SHAPE",
        )
    pooling = metadata.get("head", "gap" if side == 1 else "flatten").split("-")[0]
    if pooling == "gap" and side == 1:
        return [_layer("GlobalAveragePooling2D", "gap")], None
    window = 2 if pooling == "avg2" else 1
    average = [_layer("AveragePooling2D", "avg2", pool_size=[2, 2])] if window == 2 else []
    noted = metadata.get("image_size", "")
    image_size = 32 * window * side
    # Images of other sizes may give the same map; the size of the training is the best.
    if noted.isdecimal() and int(noted) // 32 // window == side:
        image_size = int(noted)
    return [*average, _layer("Flatten", "flatten")], image_size


def _layer(class_name: str, name: str, **config: Any) -> dict[str, Any]:
    return {
        "module": "keras.layers",
        "class_name": class_name,
        "config": {"name": name, **config},
        "registered_name": None,
    }
