"""Recognize a VGG among arrays whose names are neither this package's nor torchvision's.

Known are Caffe's names and those of what was converted from it (`conv1_1_W`, `conv1_1/biases`,
`fc6_W`), Keras' own (`block1_conv1/kernel:0`), and numbered layers whose order decides
(`Conv_3/kernel` of Flax, `layer_with_weights-3/kernel` of TensorFlow), as well as arrays that have
nothing but numbers (`arr_0`), kernel and bias in turn. Kernels may be HWIO or OIHW.
Arrays that belong to no such layer are left out.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from vggjax.errors import WeightsError, join_names, printable
from vggjax.weights.layout import AS_IS, CONV, DENSE, Layout, flattened
from vggjax.weights.names import TABLE_NAME, block_names, in_base, in_table_order, natural_order
from vggjax.weights.parsed_file import Plan
from vggjax.weights.tensor_spans import Span

_ARRAY = re.compile(r"(.+?)[/._]+(?:(kernel|filters?|weights?|w)|(bias|biases|b))", re.IGNORECASE)
_NORM = re.compile(r"[/._](gamma|scale|running_mean|moving_mean|mean)$")
_SUFFIX = re.compile(r"/\.ATTRIBUTES/VARIABLE_VALUE$|(_\d+)?:0$")
_CAFFE = re.compile(r"conv([1-9])_([1-9])")
_CAFFE_TOP = {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}

Arrays = dict[str, dict[str, Span]]
"""Layer -> kernel and bias, as stored."""


def plan_arrays(spans: Mapping[str, Span]) -> tuple[Plan, list[str]]:
    """Return the layers of the VGG among these arrays, and a line about what is left out.

    The caller checks where the arrays lie. Both are empty if there is no VGG.
    """
    found: Arrays = {}
    for name, span in spans.items():
        if match := _ARRAY.fullmatch(_SUFFIX.sub("", name)):
            found.setdefault(match[1], {})["kernel" if match[2] else "bias"] = span
    found = found or _pairs(spans)
    complete = {k: v for k, v in found.items() if len(v) == 2 and v["kernel"].ndim in (2, 4)}
    layers = _named_layers(complete) or _numbered_layers(complete)
    base = {layer: arrays for layer, arrays in layers.items() if in_base(layer)}
    if not base:
        return {}, []
    if len(norms := [name for name in spans if _NORM.search(_SUFFIX.sub("", name))]) >= len(base):
        raise WeightsError(
            f"its convolutions have batch normalization ({join_names(map(printable, norms))}), "
            f"which is read from Keras' and torch's files only.",
            code="E_UNEXPECTED",
        )
    plan = _place_base(base)
    plan |= _place_top({k: v for k, v in layers.items() if k not in base}, plan)
    used = {span.where for arrays in plan.values() for span, _ in arrays.values()}
    others = [printable(name) for name, span in spans.items() if span.where not in used]
    return in_table_order(plan), [f"left out {join_names(others)}"] if others else []


def _named_layers(found: Arrays) -> Arrays:
    """Return the layers whose names say which they are, under the table's names."""
    layers: Arrays = {}
    for path, arrays in found.items():
        name = re.split(r"[/.]", path)[-1]
        name = _CAFFE_TOP.get(name, _CAFFE.sub(r"block\1_conv\2", name))
        if TABLE_NAME.fullmatch(name):
            layers.setdefault(name, arrays)
    return layers


def _pairs(spans: Mapping[str, Span]) -> Arrays:
    """Return kernel and bias in turn where names differ in their numbers only."""
    names = sorted(spans, key=natural_order)
    if len({re.sub(r"\d+", "", name) for name in names}) != 1:
        return {}
    pairs = zip(names[::2], names[1::2], strict=False)
    return {kernel: {"kernel": spans[kernel], "bias": spans[bias]} for kernel, bias in pairs}


def _numbered_layers(found: Arrays) -> Arrays:
    """Return the layers of a VGG's convolutions whose names differ in their numbers only.

    The dense layers of the same tree, in the order of their numbers, are its top.
    """
    groups: dict[str, list[str]] = {}
    for path in sorted(found, key=natural_order):
        if found[path]["kernel"].ndim == 4:
            groups.setdefault(re.sub(r"[_-]?\d+(?=[/.]|$)", "", path), []).append(path)
    for convs in groups.values():
        for layout in (AS_IS, CONV):
            kernels = [layout.held_shape(found[path]["kernel"].shape) for path in convs]
            if names := block_names(kernels):
                root = convs[0].rpartition("/")[0].partition("/")[0]
                tree = sorted((k for k in found if k.startswith(root)), key=natural_order)
                dense = [path for path in tree if found[path]["kernel"].ndim == 2]
                tops = [*(f"fc{i}" for i in range(1, len(dense))), "predictions"]
                paths, layers = [*convs, *dense], [*names, *tops]
                return {name: found[path] for path, name in zip(paths, layers, strict=False)}
    return {}


def _place_base(layers: Arrays) -> Plan:
    kernels = [arrays["kernel"] for arrays in layers.values()]
    # OIHW only if no kernel can be HWIO: a tiny network's kernel of (3, 3, 3, 3) can be either.
    layout = AS_IS if all(kernel.shape[:2] == (3, 3) for kernel in kernels) else CONV
    return {
        layer: {"kernel": (arrays["kernel"], layout), "bias": (arrays["bias"], AS_IS)}
        for layer, arrays in layers.items()
    }


def _place_top(layers: Arrays, base: Plan) -> Plan:
    """Return the dense layers in order; none if they are not a chain on the base."""
    kernel, conv = list(base.values())[-1]["kernel"]
    width = inputs = conv.held_shape(kernel.shape)[-1]
    plan: Plan = {}
    for layer, arrays in in_table_order(layers).items():
        kernel, (outputs, *_) = arrays["kernel"], arrays["bias"].shape
        is_last = kernel.shape[-1] == outputs and (conv is AS_IS or kernel.shape[0] != outputs)
        layout: Layout = AS_IS
        if is_last:  # (in, out), or (H, W, I, O)
            kernel = replace(kernel, shape=(math.prod(kernel.shape[:-1]), outputs))
        elif kernel.shape[0] == outputs:  # (out, in), or OIHW
            kernel = replace(kernel, shape=(outputs, math.prod(kernel.shape[1:])))
            layout = DENSE if plan or conv is AS_IS else flattened(width)
        received = layout.held_shape(kernel.shape)[0]
        is_chain = received == inputs if plan else received % width == 0
        if not is_chain or (is_last and conv is CONV and not plan and received != width):
            return {}  # or its inputs are in an order that no layout here has
        plan[layer] = {"kernel": (kernel, layout), "bias": (arrays["bias"], AS_IS)}
        inputs = outputs
    return plan
