"""Finds the layers in every layout in which Keras keeps weights, with h5py alone.

Told apart by content:
- legacy: attributes `layer_names` and `weight_names`, datasets `/block1_conv1/block1_conv1_W_1:0`
  (the published files) or `/block1_conv1/block1_conv1/kernel:0`; whole-model `.h5` keeps the same
  tree under `/model_weights`, and a nested model's layers together under its name;
- `.weights.h5` (Keras 3): `/layers/conv2d/vars/0`, nested models inside `/layers/functional`, the
  layer's name in the attribute `name` of `vars` where there is one (naming.py where not).
Optimizer state and the counters of random layers are left out. Nothing is read yet, and no Keras
model is ever rebuilt. Runs inside the process of reader.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import h5py

from vggjax.errors import WeightsError, printable
from vggjax.weights.hdf5.read import Hdf5, at, has, keys, names, word
from vggjax.weights.names import TABLE_NAME, Layer, named, order
from vggjax.weights.tensor_spans import Span

PARAMS = {
    "kernel": "kernel", "W": "kernel", "bias": "bias", "b": "bias",
    "gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var",
}  # fmt: skip
"""Keras' names of parameters, old and new, and ours."""

_IN_ORDER = ("kernel", "scale", "bias", "mean", "var")  # in Keras' lists, and of `vars`
_BN = _IN_ORDER[1:]
_LEGACY_PARAM = re.compile(
    r"(?:.*_)?(kernel|W|bias|b|gamma|beta|moving_mean|moving_variance)(_\d+)?"
)
_NOT_WEIGHTS = {"optimizer", "optimizer_weights", "seed_generator"}
_KERAS_OWN = {"top_level_model_weights"}  # of no layer; empty
_MAX_DEPTH = 12
_LAMBDA = re.compile(rb'"class_name"\s*:\s*"(Lambda|__lambda__)"')


def find_layers(file: Hdf5) -> tuple[str, dict[str, dict[str, Span]], list[str]]:
    """Gives the layout's name, the layers' arrays by the table's names, and remarks.

    Raises:
        WeightsError: not of a known layout, or holding what weights cannot be.
    """
    root, layout, remarks = file.root, "weights.h5", []
    if has(root, "model_weights"):
        refuse_code(_configuration(root))
        root, layout = file.take(root, "model_weights"), "whole model"
    if any(attribute in root.attrs for attribute in ("layer_names", "layer_names0")):
        layout = layout if layout == "whole model" else "legacy"
        layers = list(_legacy_layers(file, root, remarks))
    else:
        layers = list(_v3_layers(file, root, depth=0))
    if not layers:
        raise WeightsError(
            "no layer with weights is in it. Known are Keras' published layout, whole-model "
            ".h5, .weights.h5 and .keras, each holding a VGG's layers.",
            code="E_FORMAT",
        )
    if not any(layer.kind == "conv" for layer in layers):
        listed = ", ".join(printable(layer.name) for layer in layers[:5])
        raise WeightsError(
            f"no convolution is in it, only {listed}: expected is a VGG.", code="E_ARCH"
        )
    return layout, named(layers), remarks


def facts(root: h5py.File) -> dict[str, str]:
    """Gives what this package wrote into the attribute `vggjax`; empty where there is none."""
    try:
        found = json.loads(word(root, "vggjax", default="{}", most=2**16))
    except (WeightsError, ValueError, RecursionError):
        return {}
    items = found.items() if isinstance(found, dict) else ()
    return {key: value for key, value in items if isinstance(value, str)}


def refuse_code(configuration: bytes) -> None:
    """Refuses a model's configuration with Python code in it; never interprets it.

    Raises:
        WeightsError: a Lambda layer.
    """
    if _LAMBDA.search(configuration):
        raise WeightsError(
            "the model has a Lambda layer, which is Python code inside the file; it was not run. "
            "Save the weights alone: model.save_weights('w.weights.h5').",
            code="E_CODE",
        )


def _configuration(root: h5py.File) -> bytes:
    return word(root, "model_config", default="", most=2**24).encode()


def _legacy_layers(file: Hdf5, root: h5py.Group, remarks: list[str]) -> Iterator[Layer]:
    if word(root, "backend", default="tensorflow") == "theano":
        raise WeightsError(
            "its kernels are in Theano's order, turned by 180 degrees. Save it with "
            "TensorFlow's kernels, or take the published file that has tf_kernels in its name.",
            code="E_ORDER",
        )
    listed = names(root, "layer_names")
    if surplus := sorted(set(keys(root)) - {name.split("/")[0] for name in listed} - _KERAS_OWN):
        first = ", ".join(map(printable, surplus[:3]))
        remarks.append(f"{len(surplus)} unlisted in layer_names and left out: {first}")
    for group_name in listed:
        group = file.take(root, group_name)
        paths = [path for path in names(group, "weight_names") if "seed_generator" not in path]
        owners = {path.split("/")[-2] if "/" in path else group_name for path in paths}
        found: dict[str, dict[str, Span]] = {}
        for path in paths:
            # One owner: the group's name is the layer's, which a scope may have renamed. Several:
            # the group is a nested model, and each path ends in LAYER/PARAM.
            owner = group_name if len(owners) == 1 else path.split("/")[-2]
            last = path.split("/")[-1].partition(":")[0]
            match = _LEGACY_PARAM.fullmatch(last)
            if not match:
                raise WeightsError(
                    f"{printable(path)!r} of layer {printable(owner)!r} is no parameter of a convolution, "
                    f"a dense layer or a batch normalization ({', '.join(PARAMS)}).",
                    code="E_UNEXPECTED",
                )
            params = found.setdefault(owner, {})
            if (param := PARAMS[match[1]]) in params:
                raise WeightsError(
                    f"the layer {printable(owner)!r} has two parameters {param!r}.",
                    code="E_DUPLICATE",
                )
            params[param] = file.span(file.take(group, path), layer=owner)
        for owner, params in found.items():
            if list(params) != [param for param in _IN_ORDER if param in params]:
                # Keras itself goes by the order and would mix them up: both must say the same.
                raise WeightsError(
                    f"the layer {printable(owner)!r} lists {', '.join(params)}; Keras' order is "
                    f"{', '.join(param for param in _IN_ORDER if param in params)}.",
                    code="E_ORDER",
                )
            yield _checked(Layer(owner, params))


def _v3_layers(file: Hdf5, group: h5py.Group, *, depth: int) -> Iterator[Layer]:
    if depth > _MAX_DEPTH:
        raise WeightsError(
            f"its groups are nested more than {_MAX_DEPTH} deep at {at(group)}.", code="E_FORMAT"
        )
    before = None
    for key in sorted(keys(group), key=_natural):
        if key in _NOT_WEIGHTS:
            continue
        node = file.take(group, key)
        if not isinstance(node, h5py.Group):
            continue
        if key == "vars":
            if len(node):
                own = group.name.split("/")[-1]
                yield _v3_layer(file, word(node, "name", default=own), node)
            continue
        for layer in _v3_layers(file, node, depth=depth + 1):
            # Keras itself goes by these numbers and overlooks the names: both must say the same.
            if re.fullmatch(r"conv2d(_\d+)?", key) and TABLE_NAME.fullmatch(layer.name):
                if before is not None and order(layer.name) < order(before):
                    raise WeightsError(
                        f"its numbering puts {printable(before)!r} before {printable(layer.name)!r}.",
                        code="E_ORDER",
                    )
                before = layer.name
            yield layer


def _v3_layer(file: Hdf5, name: str, node: h5py.Group) -> Layer:
    numbers = sorted(keys(node), key=_natural)
    if len(numbers) > len(_BN) or numbers != [str(i) for i in range(len(numbers))]:
        raise WeightsError(
            f"the layer {printable(name)!r} at {at(node)} has the arrays "
            f"{', '.join(map(printable, numbers[:6]))}; expected are 0, 1 ..., four at most.",
            code="E_UNEXPECTED",
        )
    spans = [file.span(file.take(node, number), layer=name) for number in numbers]
    ranks = [span.ndim for span in spans]
    if ranks == [1, 1, 1, 1]:
        params = dict(zip(_BN, spans, strict=True))
    elif ranks[0] > 1 and ranks[1:] in ([], [1]):
        params = dict(zip(("kernel", "bias"), spans, strict=False))
    else:
        raise WeightsError(
            f"the layer {printable(name)!r} at {at(node)} has arrays of shapes "
            f"{', '.join(str(span.shape) for span in spans)}: neither a convolution nor a dense "
            f"layer nor a batch normalization.",
            code="E_SHAPE",
        )
    return _checked(Layer(name, params))


def _checked(layer: Layer) -> Layer:
    """Refuses arrays that cannot belong together, whatever their names say."""
    kernel, bias = layer.params.get("kernel"), layer.params.get("bias")
    where = f"the layer {printable(layer.name)!r}"
    if kernel is not None and layer.kind == "other":
        raise WeightsError(
            f"{where} has a kernel of shape {kernel.shape}; expected are 4 axes of a convolution "
            f"or 2 of a dense layer.",
            code="E_SHAPE",
        )
    if kernel is not None and bias is not None and bias.shape != kernel.shape[-1:]:
        if bias.ndim == 1 and layer.kind == "conv" and bias.shape == kernel.shape[:1]:
            raise WeightsError(
                f"{where} has a kernel {kernel.shape} in the order (out, in, height, width) of "
                f"Theano and torch under Keras' names; expected is (height, width, in, out).",
                code="E_ORDER",
            )
        raise WeightsError(
            f"{where} has a kernel {kernel.shape} and a bias {bias.shape}; expected is a bias "
            f"{kernel.shape[-1:]}.",
            code="E_SHAPE",
        )
    if kernel is None and len({span.shape for span in layer.params.values()}) > 1:
        raise WeightsError(f"{where} has statistics of different lengths.", code="E_SHAPE")
    return layer


def _natural(key: str) -> list:
    """Sorts `conv2d_2` before `conv2d_10`, and `conv2d` before both."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", key)]
