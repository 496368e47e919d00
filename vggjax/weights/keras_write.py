"""Writes the layouts of Keras: the published legacy `.h5` and `.weights.h5`.

Keras' `load_weights` takes both, the legacy one by name too; what each looks like is in keras.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vggjax.weights.naming import TABLE_NAME, Layer, order

if TYPE_CHECKING:
    from vggjax.models.assign import Weights

_BN = ("scale", "bias", "mean", "var")  # the order of Keras' lists, and of `vars`


def write_legacy_h5(path: Path, weights: Weights) -> None:
    """Writes the layout of the published files: `/block1_conv1/block1_conv1_W_1:0`."""
    import h5py

    suffixes = {"kernel": "W_1", "scale": "gamma_1", "mean": "moving_mean_1",
                "var": "moving_variance_1"}  # fmt: skip
    with h5py.File(path, "w") as file:
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


def write_weights_h5(path: Path, weights: Weights) -> None:
    """Writes Keras 3's `.weights.h5`: `/layers/conv2d/vars/0`, numbered by class in order."""
    import h5py

    counts: dict[str, int] = {}
    with h5py.File(path, "w") as file:
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
