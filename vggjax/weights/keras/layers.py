"""Find the layers in every layout in which Keras stores weights, with h5py alone.

The content decides which layout it is:
- legacy: attributes `layer_names` and `weight_names`, datasets `/block1_conv1/block1_conv1_W_1:0`
  (the published files) or `/block1_conv1/block1_conv1/kernel:0`; a whole-model `.h5` keeps the
  same tree under `/model_weights`, with the layers of a nested model together under its name;
- `.weights.h5` (Keras 3): `/layers/conv2d/vars/0`, nested models inside `/layers/functional`, the
  layer's name in the attribute `name` of `vars`; without it, names.py derives the name.

The optimizer's state and layers that a VGG does not have are left out; the latter are named. No
weight is read, and no Keras model is rebuilt. This module runs in the process that keras/read.py
starts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import h5py
import numpy as np

from vggjax.errors import WeightsError, join_names, printable
from vggjax.weights.hdf5.read import CheckedFile, has_link, link_names, name_of, text, text_list
from vggjax.weights.keras.write import METADATA
from vggjax.weights.names import (
    BATCH_NORM,
    PARAMS,
    TABLE_NAME,
    Layer,
    layer_order,
    natural_order,
    with_table_names,
)
from vggjax.weights.tensor_spans import Span

KERAS_PARAMS = {
    "kernel": "kernel", "W": "kernel", "bias": "bias", "b": "bias",
    "gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var",
}  # fmt: skip
"""Keras' names of parameters, old and new -> this package's."""

_LEGACY_PARAM = re.compile(rf"(?:.*_)?({'|'.join(KERAS_PARAMS)})(_\d+)?")
_NOT_WEIGHTS = {"optimizer", "optimizer_weights", "seed_generator"}
_EMPTY_GROUP = "top_level_model_weights"  # Keras writes it, and it belongs to no layer
_KERAS_GROUPS = {"model_weights", "layers", "optimizer_weights", _EMPTY_GROUP}
_MAX_DEPTH = 12
_SCALING = re.compile(r"(rescaling|lambda|true_divide|tf\.math\.truediv)(_\d+)?")
_LAMBDA = re.compile(rb'"class_name"\s*:\s*"(Lambda|__lambda__)"')


@dataclass
class KerasLayers:
    """What a Keras file holds."""

    layout: str = "weights.h5"
    """The layout's name."""
    layers: dict[str, dict[str, Span]] = field(default_factory=dict)
    """The arrays under the layer table's names."""
    left_out: list[str] = field(default_factory=list)
    """A line about each group of arrays that is not in `layers`."""
    scaling: dict[str, str] = field(default_factory=dict)
    """Layers that scale pixels -> the mean and the variance, empty if the file lacks them."""
    configuration: bytes = b""
    """The configuration of a whole model, as JSON."""


def find_layers(file: CheckedFile) -> KerasLayers:
    """Find the layers, and check where their arrays lie."""
    root, found = file.root, KerasLayers()
    if has_link(root, "model_weights"):
        found.configuration = text(root, "model_config", default="", max_bytes=2**24).encode()
        refuse_code(found.configuration)
        root, found.layout = file.get(root, "model_weights"), "whole model"
    if any(attribute in root.attrs for attribute in ("layer_names", "layer_names0")):
        found.layout = found.layout if found.layout == "whole model" else "legacy"
        layers = list(_legacy_layers(file, root, found))
    else:
        layers = list(_v3_layers(file, root, found, depth=0))
    if not any(layer.params for layer in layers):
        raise _no_layers(file)
    if not any(layer.kind == "conv" for layer in layers):
        listed = ", ".join(printable(layer.name) for layer in layers[:5])
        raise WeightsError(
            f"it contains no convolution, only {listed}; expected a VGG.", code="E_ARCH"
        )
    found.layers, notes = with_table_names(layers)
    found.left_out += notes
    return found


def _no_layers(file: CheckedFile) -> WeightsError:
    """Return the refusal of an HDF5 file that is not Keras', or older than its layouts."""
    if "nb_layers" in file.root.attrs:
        return WeightsError(
            "it was written by Keras before 1.0 for Theano, whose kernels are rotated by 180 "
            "degrees. Take the published file that has tf_kernels in its name.",
            code="E_ORDER",
        )
    names = link_names(file.root)
    is_keras = any(map(TABLE_NAME.fullmatch, names)) or not _KERAS_GROUPS.isdisjoint(names)
    message = (
        "it contains no layer with weights in any layout of Keras: published, whole-model .h5, "
        ".weights.h5 or .keras."
    )
    if not names or is_keras:
        return WeightsError(message, code="E_FORMAT")
    return WeightsError(
        f"{message} Arrays in groups of other names ({join_names(map(printable, names), most=3)}) "
        f"are read from an .npz: python -c \"import h5py, numpy; a = {{}}; h5py.File('FILE.h5')."
        f"visititems(lambda k, v: a.update({{k: v[()]}}) if hasattr(v, 'dtype') else None); "
        f"numpy.savez('weights.npz', **a)\"",
        code="E_FOREIGN",
    )


def read_metadata(root: h5py.File) -> dict[str, str]:
    """Return the metadata that this package wrote; empty for other files."""
    try:
        metadata = json.loads(text(root, METADATA, default="{}", max_bytes=2**16))
    except (WeightsError, ValueError, RecursionError):
        return {}
    items = metadata.items() if isinstance(metadata, dict) else ()
    return {key: value for key, value in items if isinstance(value, str)}


def refuse_code(configuration: bytes) -> None:
    """Refuse a model's configuration with a Lambda layer, which is Python code."""
    if _LAMBDA.search(configuration):
        raise WeightsError(
            "the model has a Lambda layer, which is Python code inside the file; it was not run. "
            "Save the weights alone, model.save_weights('w.weights.h5'), and set `preprocess` if "
            "the Lambda scaled the pixels.",
            code="E_CODE",
        )


def _legacy_layers(file: CheckedFile, root: h5py.Group, found: KerasLayers) -> Iterator[Layer]:
    if text(root, "backend", default="tensorflow") == "theano":
        raise WeightsError(
            "its kernels are in Theano's order, rotated by 180 degrees. Save it with "
            "TensorFlow's kernels, or take the published file that has tf_kernels in its name.",
            code="E_ORDER",
        )
    group_names = text_list(root, "layer_names")
    listed = {name.split("/")[0] for name in group_names} | {_EMPTY_GROUP}
    if unlisted := sorted(set(link_names(root)) - listed):
        first = ", ".join(map(printable, unlisted[:3]))
        found.left_out.append(f"{len(unlisted)} unlisted in layer_names and left out: {first}")
    for group_name in group_names:
        if _SCALING.fullmatch(group_name):
            found.scaling[group_name] = ""
        group = file.get(root, group_name)
        paths = [path for path in text_list(group, "weight_names") if "seed_generator" not in path]
        owners = {path.split("/")[-2] if "/" in path else group_name for path in paths}
        by_layer: dict[str, list[tuple[str | None, str]]] = {}
        for path in paths:
            # One owner: the group's name is the layer's, and a scope may have renamed it in the
            # path. Several: the group is a nested model, and each path ends in LAYER/PARAM.
            parts = path.split("/")
            layer = group_name if len(owners) == 1 or len(parts) == 1 else parts[-2]
            match = _LEGACY_PARAM.fullmatch(parts[-1].partition(":")[0])
            by_layer.setdefault(layer, []).append((KERAS_PARAMS[match[1]] if match else None, path))
        for layer, named in by_layer.items():
            yield from _legacy_layer(file, group, layer, named, found)


def _legacy_layer(
    file: CheckedFile,
    group: h5py.Group,
    layer: str,
    named: list[tuple[str | None, str]],
    found: KerasLayers,
) -> Iterator[Layer]:
    """Yield the layer whose arrays are `named`, (parameter, path), in the order of the file."""
    params = [param for param, _ in named]
    if None in params or len(set(params)) < len(params):
        if not TABLE_NAME.fullmatch(layer):
            arrays = [file.get(group, path) for _, path in named]
            yield from _foreign_layer(file, layer, arrays, found)
            return
        if None not in params:
            raise WeightsError(
                f"the layer {printable(layer)!r} has two parameters "
                f"{next(p for p in params if params.count(p) > 1)!r}.",
                code="E_DUPLICATE",
            )
        raise WeightsError(
            f"{printable(named[params.index(None)][1])!r} of layer {printable(layer)!r} is not a "
            f"parameter of a VGG's layer ({', '.join(KERAS_PARAMS)}).",
            code="E_UNEXPECTED",
        )
    expected = [param for param in PARAMS if param in params]
    # Keras itself goes by the order and ignores the names: both must agree.
    if params != expected:
        raise WeightsError(
            f"the layer {printable(layer)!r} lists {join_names(map(str, params))}; Keras' order is "
            f"{join_names(expected)}. Save it again with Keras.",
            code="E_ORDER",
        )
    spans = {str(param): file.span(file.get(group, path), layer=layer) for param, path in named}
    yield _checked(Layer(layer, spans))


def _v3_layers(
    file: CheckedFile, group: h5py.Group, found: KerasLayers, *, depth: int
) -> Iterator[Layer]:
    if depth > _MAX_DEPTH:
        raise WeightsError(
            f"its groups are nested more than {_MAX_DEPTH} deep at {name_of(group)}.",
            code="E_FORMAT",
        )
    previous = None
    for key in sorted(link_names(group), key=natural_order):
        if key in _NOT_WEIGHTS:
            continue
        node = file.get(group, key)
        if not isinstance(node, h5py.Group):
            continue
        if _SCALING.fullmatch(key):
            found.scaling[key] = ""
        if key == "vars":
            if len(node):
                name = text(node, "name", default=group.name.split("/")[-1])
                yield from _v3_layer(file, name, node, found)
            continue
        for layer in _v3_layers(file, node, found, depth=depth + 1):
            # Keras itself goes by these numbers and ignores the names: both must agree.
            if re.fullmatch(r"conv2d(_\d+)?", key) and TABLE_NAME.fullmatch(layer.name):
                if previous is not None and layer_order(layer.name) < layer_order(previous):
                    raise WeightsError(
                        f"its numbering puts {printable(previous)!r} before "
                        f"{printable(layer.name)!r}. Save it again with Keras.",
                        code="E_ORDER",
                    )
                previous = layer.name
            yield layer


def _v3_layer(
    file: CheckedFile, name: str, node: h5py.Group, found: KerasLayers
) -> Iterator[Layer]:
    numbers = sorted(link_names(node), key=natural_order)
    arrays = [file.get(node, number) for number in numbers]
    is_numbered = numbers == [str(i) for i in range(len(numbers))]
    ranks = [len(getattr(array, "shape", None) or ()) for array in arrays]
    is_norm = ranks == [1, 1, 1, 1]
    has_kernel = ranks in ([2], [4], [2, 1], [4, 1])
    if is_numbered and not is_norm and not has_kernel and not TABLE_NAME.fullmatch(name):
        yield from _foreign_layer(file, name, arrays, found)
        return
    if len(numbers) > len(BATCH_NORM) or not is_numbered:
        raise WeightsError(
            f"the layer {printable(name)!r} at {name_of(node)} has the arrays "
            f"{', '.join(map(printable, numbers[:6]))}; expected 0, 1 ..., at most four.",
            code="E_UNEXPECTED",
        )
    spans = [file.span(array, layer=name) for array in arrays]
    if not is_norm and not has_kernel:
        raise WeightsError(
            f"the layer {printable(name)!r} at {name_of(node)} has arrays of the shapes "
            f"{', '.join(str(span.shape) for span in spans)}, which no layer of a VGG has.",
            code="E_SHAPE",
        )
    names = BATCH_NORM if is_norm else ("kernel", "bias")
    yield _checked(Layer(name, dict(zip(names, spans, strict=False))))


def _foreign_layer(
    file: CheckedFile, name: str, arrays: list[h5py.Dataset], found: KerasLayers
) -> Iterator[Layer]:
    """Leave out a layer that no VGG has; yield it without arrays if the top may depend on it."""
    is_random = all(getattr(array, "dtype", np.dtype("O")).kind in "iu" for array in arrays)
    if name.startswith("normalization"):
        found.scaling[name] = ", ".join(
            f"{label} {', '.join(f'{number:.4g}' for number in array[()].ravel().tolist())}"
            for label, array in zip(("mean", "variance"), arrays, strict=False)
            if getattr(array, "size", 0) in range(1, 5) and file.span(array, layer=name)
        )
    elif is_random:
        found.left_out.append(f"left out {printable(name)}, the state of a random layer")
    else:
        yield Layer(name, {})


def _checked(layer: Layer) -> Layer:
    """Return the layer if its arrays can belong together, whatever their names are."""
    kernel, bias = layer.params.get("kernel"), layer.params.get("bias")
    where = f"the layer {printable(layer.name)!r}"
    if kernel is not None and layer.kind == "other":
        if not TABLE_NAME.fullmatch(layer.name):
            return Layer(layer.name, {})  # of a convolution over time, of attention ...
        raise WeightsError(
            f"{where} has a kernel of the shape {kernel.shape}; expected 4 axes (convolution) or 2 "
            f"(dense).",
            code="E_SHAPE",
        )
    if kernel is not None and bias is not None and bias.shape != kernel.shape[-1:]:
        if bias.ndim == 1 and layer.kind == "conv" and bias.shape == kernel.shape[:1]:
            raise WeightsError(
                f"{where} has a kernel {kernel.shape} in the order (out, in, height, width) of "
                f"Theano and PyTorch under Keras' names; expected (height, width, in, out).",
                code="E_ORDER",
            )
        raise WeightsError(
            f"{where} has a kernel {kernel.shape} but a bias {bias.shape}.",
            code="E_SHAPE",
        )
    if kernel is None and len({span.shape for span in layer.params.values()}) > 1:
        raise WeightsError(f"{where} has statistics of different lengths.", code="E_SHAPE")
    return layer
