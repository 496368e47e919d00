"""Find the layers in every layout in which Keras stores weights, with h5py alone.

The content decides which layout it is:
- legacy: attributes `layer_names` and `weight_names`, datasets `/block1_conv1/block1_conv1_W_1:0`
  (the published files) or `/block1_conv1/block1_conv1/kernel:0`; a whole-model `.h5` keeps the
  same tree under `/model_weights`, with the layers of a nested model together under its name;
- `.weights.h5` (Keras 3): `/layers/conv2d/vars/0`, nested models inside `/layers/functional`, the
  layer's name in the attribute `name` of `vars`; without it, names.py derives the name.

The optimizer's state and the counters of random layers are left out. No number is read, and no
Keras model is rebuilt. This module runs in the process that keras/read.py starts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import h5py

from vggjax.errors import WeightsError, printable
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
_MAX_DEPTH = 12
_LAMBDA = re.compile(rb'"class_name"\s*:\s*"(Lambda|__lambda__)"')


def find_layers(file: CheckedFile) -> tuple[str, dict[str, dict[str, Span]], list[str]]:
    """Return the layout's name, the arrays under the layer table's names, and what is left out."""
    root, layout = file.root, "weights.h5"
    left_out: list[str] = []
    if has_link(root, "model_weights"):
        refuse_code(text(root, "model_config", default="", max_bytes=2**24).encode())
        root, layout = file.get(root, "model_weights"), "whole model"
    if any(attribute in root.attrs for attribute in ("layer_names", "layer_names0")):
        layout = layout if layout == "whole model" else "legacy"
        layers = list(_legacy_layers(file, root, left_out))
    else:
        layers = list(_v3_layers(file, root, depth=0))
    if not layers:
        raise WeightsError(
            "it contains no layer with weights in any layout of Keras: published, whole-model .h5, "
            ".weights.h5 or .keras.",
            code="E_FORMAT",
        )
    if not any(layer.kind == "conv" for layer in layers):
        listed = ", ".join(printable(layer.name) for layer in layers[:5])
        raise WeightsError(
            f"it contains no convolution, only {listed}; expected a VGG.", code="E_ARCH"
        )
    return layout, with_table_names(layers), left_out


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
            "Save the weights alone: model.save_weights('w.weights.h5').",
            code="E_CODE",
        )


def _legacy_layers(file: CheckedFile, root: h5py.Group, left_out: list[str]) -> Iterator[Layer]:
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
        left_out.append(f"{len(unlisted)} unlisted in layer_names and left out: {first}")
    for group_name in group_names:
        group = file.get(root, group_name)
        paths = [path for path in text_list(group, "weight_names") if "seed_generator" not in path]
        owners = {path.split("/")[-2] if "/" in path else group_name for path in paths}
        params_by_layer: dict[str, dict[str, Span]] = {}
        for path in paths:
            # One owner: the group's name is the layer's, and a scope may have renamed it in the
            # path. Several: the group is a nested model, and each path ends in LAYER/PARAM.
            layer = group_name if len(owners) == 1 else path.split("/")[-2]
            match = _LEGACY_PARAM.fullmatch(path.split("/")[-1].partition(":")[0])
            if not match:
                raise WeightsError(
                    f"{printable(path)!r} of layer {printable(layer)!r} is not a parameter of a "
                    f"VGG's layer ({', '.join(KERAS_PARAMS)}).",
                    code="E_UNEXPECTED",
                )
            params = params_by_layer.setdefault(layer, {})
            if (param := KERAS_PARAMS[match[1]]) in params:
                raise WeightsError(
                    f"the layer {printable(layer)!r} has two parameters {param!r}.",
                    code="E_DUPLICATE",
                )
            params[param] = file.span(file.get(group, path), layer=layer)
        for layer, params in params_by_layer.items():
            expected = [param for param in PARAMS if param in params]
            # Keras itself goes by the order and ignores the names: both must agree.
            if list(params) != expected:
                raise WeightsError(
                    f"the layer {printable(layer)!r} lists {', '.join(params)}; Keras' order is "
                    f"{', '.join(expected)}. Save it again with Keras.",
                    code="E_ORDER",
                )
            yield _checked(Layer(layer, params))


def _v3_layers(file: CheckedFile, group: h5py.Group, *, depth: int) -> Iterator[Layer]:
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
        if key == "vars":
            if len(node):
                yield _v3_layer(file, text(node, "name", default=group.name.split("/")[-1]), node)
            continue
        for layer in _v3_layers(file, node, depth=depth + 1):
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


def _v3_layer(file: CheckedFile, name: str, node: h5py.Group) -> Layer:
    numbers = sorted(link_names(node), key=natural_order)
    if len(numbers) > len(BATCH_NORM) or numbers != [str(i) for i in range(len(numbers))]:
        raise WeightsError(
            f"the layer {printable(name)!r} at {name_of(node)} has the arrays "
            f"{', '.join(map(printable, numbers[:6]))}; expected 0, 1 ..., at most four.",
            code="E_UNEXPECTED",
        )
    spans = [file.span(file.get(node, number), layer=name) for number in numbers]
    ranks = [span.ndim for span in spans]
    if ranks == [1, 1, 1, 1]:
        params = dict(zip(BATCH_NORM, spans, strict=True))
    elif ranks[0] > 1 and ranks[1:] in ([], [1]):
        params = dict(zip(("kernel", "bias"), spans, strict=False))
    else:
        raise WeightsError(
            f"the layer {printable(name)!r} at {name_of(node)} has arrays of the shapes "
            f"{', '.join(str(span.shape) for span in spans)}, which no layer of a VGG has.",
            code="E_SHAPE",
        )
    return _checked(Layer(name, params))


def _checked(layer: Layer) -> Layer:
    """Return the layer if its arrays can belong together, whatever their names are."""
    kernel, bias = layer.params.get("kernel"), layer.params.get("bias")
    where = f"the layer {printable(layer.name)!r}"
    if kernel is not None and layer.kind == "other":
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
