"""Writes the layouts of Keras: the published legacy `.h5`, `.weights.h5` and `.keras`.

Keras' `load_weights` takes the first two, the legacy one by name too, and `load_model` the third;
what each looks like is in keras.py. What this package wants to remember (which pixels the weights
expect, the names of the classes, where they came from) lies beside, where Keras passes over it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vggjax.weights.hdf5.write import create_hdf5
from vggjax.weights.names import TABLE_NAME, Layer, order

if TYPE_CHECKING:
    import h5py

    from vggjax.models.params import Weights

NOTE = "vggjax"
"""The attribute of an `.h5`'s root, and with `.json` the member of a `.keras`, for the metadata."""

MAX_NOTE_BYTES = 60_000
"""An attribute has no more than 64 KiB; what does not fit is left out, the longest text first."""

_BN = ("scale", "bias", "mean", "var")  # the order of Keras' lists, and of `vars`


def write_legacy_h5(path: Path, weights: Weights, metadata: dict[str, str]) -> None:
    """Writes the layout of the published files: `/block1_conv1/block1_conv1_W_1:0`."""
    suffixes = {"kernel": "W_1", "scale": "gamma_1", "mean": "moving_mean_1",
                "var": "moving_variance_1"}  # fmt: skip
    with create_hdf5(path) as file:
        _note(file, metadata)
        layers = _with_plain_layers(weights)
        file.attrs["layer_names"] = np.array(layers, dtype="S")
        file.attrs["backend"] = np.bytes_("tensorflow")
        file.attrs["keras_version"] = np.bytes_("2.0.0")  # Keras then converts nothing
        for layer in layers:
            group, params = file.create_group(layer), weights.get(layer, {})
            bias = "b_1" if "kernel" in params else "beta_1"
            stored = {
                f"{layer}_{bias if param == 'bias' else suffixes[param]}:0": params[param]
                for param in _param_order(params)
            }
            group.attrs["weight_names"] = np.array(list(stored), dtype="S")
            for key, array in stored.items():
                group.create_dataset(key, data=array)


def write_weights_h5(path: Path, weights: Weights, metadata: dict[str, str]) -> None:
    """Writes Keras 3's `.weights.h5`: `/layers/conv2d/vars/0`, numbered by class in order."""
    counts: dict[str, int] = {}
    with create_hdf5(path) as file:
        _note(file, metadata)
        for layer in sorted(weights, key=order):
            params = weights[layer]
            kind = {"conv": "conv2d", "dense": "dense"}.get(
                Layer(layer, params).kind, "batch_normalization"
            )
            number = counts[kind] = counts.get(kind, -1) + 1
            group = file.create_group(f"layers/{kind}{f'_{number}' if number else ''}/vars")
            group.attrs["name"] = layer
            for i, param in enumerate(_param_order(params)):
                group.create_dataset(str(i), data=params[param])


def _note(file: h5py.File, metadata: dict[str, str]) -> None:
    metadata = dict(metadata)
    while metadata and len(text := json.dumps(metadata, sort_keys=True)) > MAX_NOTE_BYTES:
        metadata.pop(max(metadata, key=lambda key: len(metadata[key])))  # thousands of classes
    if metadata:
        file.attrs[NOTE] = np.bytes_(text.encode())


def _param_order(params: dict[str, np.ndarray]) -> list[str]:
    return [name for name in (("kernel", "bias") if "kernel" in params else _BN) if name in params]


def _with_plain_layers(weights: Weights) -> list[str]:
    """Adds the layers without weights that the published files list too, where they belong."""
    layers = sorted(weights, key=order)
    listed = ["input_1"] if all(map(TABLE_NAME.fullmatch, layers)) else []
    plain = bool(listed)
    for layer, after in zip(layers, [*layers[1:], ""], strict=True):
        listed.append(layer)
        block = layer.split("_")[0]
        if plain and layer.startswith("block") and not after.startswith(f"{block}_"):
            listed.append(f"{block}_pool")
            listed += ["flatten"] if after and not after.startswith("block") else []
    return listed
