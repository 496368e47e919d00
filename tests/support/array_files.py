"""Weight files in the formats of plain arrays, as other libraries and old tutorials write them.

The base has VGG11's layers and few channels; kernels are held HWIO and (in, out).
"""

import numpy as np

from support.networks import random_weights
from vggjax.models.arch import Arch
from vggjax.models.head import Head

NARROW = Arch("narrow11", (1, 1, 2, 2, 2), (2, 2, 4, 4, 4))
WEIGHTS = random_weights(NARROW, Head("flatten", (6, 5), outputs=3), image_size=64)  # 2x2x4 inputs
BASE = {layer: params for layer, params in WEIGHTS.items() if layer.startswith("block")}

_CAFFE_TOP = {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"}


def caffe_name(layer):
    """block1_conv1 -> conv1_1."""
    return _CAFFE_TOP.get(layer) or layer.replace("block", "conv").replace("_conv", "_")


def flat(weights, name="{layer}/{param}"):
    """Return `{name: array}`; `name` may use the layer's own name, Caffe's, and its number."""
    arrays, numbers = {}, {}
    for layer, params in weights.items():
        kind = "Conv" if "conv" in layer else "Dense"
        number = numbers[kind] = numbers.get(kind, -1) + 1
        for param, array in params.items():
            key = name.format(
                layer=layer, param=param, caffe=caffe_name(layer), kind=kind, number=number,
                w="W" if param == "kernel" else "b",
                weights="weights" if param == "kernel" else "biases",
                filters="filters" if param == "kernel" else "biases",
                block=f"Block_{layer[5]}" if "block" in layer else "Top_0",
            )  # fmt: skip
            arrays[key] = array
    return arrays


def outputs_first(weights):
    """Return kernels as Caffe and torch store them: OIHW, (out, C*H*W) and (out, in)."""
    stored = {}
    for layer, params in weights.items():
        kernel = params["kernel"]
        if kernel.ndim == 4:
            kernel = kernel.transpose(3, 2, 0, 1)
        elif layer == "fc1":
            kernel = kernel.reshape(2, 2, 4, -1).transpose(3, 2, 0, 1).reshape(kernel.shape[1], -1)
        else:
            kernel = kernel.T
        stored[layer] = {"kernel": np.ascontiguousarray(kernel), "bias": params["bias"]}
    return stored


def nested(arrays):
    """Return `{"a/b": array}` as dicts in dicts."""
    tree = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = array
    return tree


def onnx_model(weights=WEIGHTS, *, style="torch", raw=True, dtype=np.float32, norms=None):
    """Return a network as torch, tf2onnx (`keras`) or the model zoo (`gluon`) write it."""
    from onnx import helper, numpy_helper

    arrays, nodes, x = {}, [], "x"
    names = {
        "torch": {"kernel": "net.{number}.weight", "bias": "net.{number}.bias"},
        "keras": {"kernel": "m/{layer}/Conv2D/ReadVariableOp:0", "bias": "m/{layer}/BiasAdd:0"},
        "gluon": {"kernel": "vgg0_conv{number}_weight", "bias": "vgg0_conv{number}_bias"},
    }[style]

    def add(op, *inputs, **attributes):
        nonlocal x
        nodes.append(helper.make_node(op, [x, *inputs], [f"y{len(nodes)}"], **attributes))
        x = nodes[-1].output[0]

    def put(array, param, layer):
        key = names[param].format(number=len(arrays), layer=layer)
        arrays[key] = array.astype(dtype) if dtype else array
        return key

    is_keras = style == "keras"
    if is_keras:
        add("Transpose", perm=[0, 3, 1, 2])
    stored = outputs_first(weights)
    for layer, following in zip(stored, [*list(stored)[1:], ""], strict=True):
        kernel, bias = stored[layer]["kernel"], stored[layer]["bias"]
        if layer.startswith("block"):
            add("Conv", put(kernel, "kernel", layer), put(bias, "bias", layer))
            if norms:
                keys = [
                    put(norms[layer][p], "bias", f"{layer}{p}")
                    for p in ("scale", "bias", "mean", "var")
                ]
                add("BatchNormalization", *keys)
            add("Relu")
            if following.split("_")[0] != layer.split("_")[0]:
                add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
            if following == "fc1":
                if is_keras:
                    add("Transpose", perm=[0, 2, 3, 1])
                add("Flatten")
        elif is_keras:
            add("MatMul", put(weights[layer]["kernel"], "kernel", layer))
            add("Add", put(bias, "bias", layer))
        else:
            add("Gemm", put(kernel, "kernel", layer), put(bias, "bias", layer), transB=1)
            add("Relu")

    def tensor(name, array):
        if raw:
            return numpy_helper.from_array(array, name)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        return helper.make_tensor(name, kind, array.shape, array.ravel())

    graph = helper.make_graph(nodes, "g", [], [], [tensor(k, a) for k, a in arrays.items()])
    if style == "gluon":  # MXNet gives no name
        return helper.make_model(graph)
    producer = {"torch": "pytorch", "keras": "tf2onnx"}[style]
    return helper.make_model(graph, producer_name=producer)
