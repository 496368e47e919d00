"""Write a classifier as one ONNX graph: resize, preprocessing, network, temperature, names.

In: `images`, uint8 RGB (N, H, W, 3), of any size. Out: `probabilities`, float32 (N, C), and `names`
(N,), the most probable class, or of several labels per image `labels`, bool (N, C). Every layer's
output has its Keras name, and its arrays `<layer>/kernel` and so on. `class_names` and the rest of
description.py are the file's metadata.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper

from vggjax.data.images.preprocess import BGR_MEAN, RGB_MEAN, RGB_STD
from vggjax.export.onnx_graph import IR_VERSION, OPSET, Graph
from vggjax.export.onnx_resize import add_resize
from vggjax.models.arch import EPSILON
from vggjax.models.head import Head
from vggjax.models.network import LUMA, Network
from vggjax.models.params import extract
from vggjax.training.run_dir.run_result import ModelInfo


def make_onnx(model: Network, info: ModelInfo, metadata: Mapping[str, str]) -> ModelProto:
    """Return the ONNX model of a classifier; `metadata` is kept in it, `license` also readable."""
    graph = Graph()
    pixels = add_resize(graph, "images", info.preprocessing)
    pixels = _preprocess(graph, pixels, info.preprocessing.mode)
    logits = _Layers(graph, model, temperature=info.temperature or 1.0).add(pixels)
    outputs = _add_outputs(graph, logits, info)
    images = helper.make_tensor_value_info(
        "images", TensorProto.UINT8, ["N", "H", "W", 3], metadata["input"]
    )
    model_proto = helper.make_model(
        graph.proto(f"{info.arch}, {info.head}", [images], outputs),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="vggjax",
        producer_version=metadata["producer"].partition(" ")[2],
        doc_string=f"Input: {metadata['input']}. License: {metadata['license']}",
    )
    helper.set_model_props(model_proto, dict(metadata))
    return model_proto


def _preprocess(graph: Graph, pixels: str, mode: str) -> str:
    """Add `preprocess` of data/images/preprocess.py, on float32 (N, 3, S, S)."""

    def along_channels(values: tuple[float, ...]) -> str:
        return graph.constant(np.array(values, np.float32).reshape(3, 1, 1))

    if mode == "caffe":
        pixels = graph.add("Gather", pixels, graph.constant([2, 1, 0]), axis=1)
        return graph.add("Sub", pixels, along_channels(BGR_MEAN), name="preprocessed")
    white = graph.constant(255.0, np.float32)
    if mode == "unit":
        return graph.add("Div", pixels, white, name="preprocessed")
    pixels = graph.add("Sub", graph.add("Div", pixels, white), along_channels(RGB_MEAN))
    return graph.add("Div", pixels, along_channels(RGB_STD), name="preprocessed")


class _Layers:
    """Adds the layers of a network, as `Network` runs them in evaluation mode, to a graph."""

    def __init__(self, graph: Graph, model: Network, *, temperature: float):
        self._graph, self._model, self._temperature = graph, model, temperature
        self._weights = extract(model)

    def add(self, x: str) -> str:
        """Add all layers after `x`, float32 (N, 3, S, S); return the logits (N, C)."""
        for name in self._model.layers:
            x = self._add_layer(name, x)
        return x

    def _add_layer(self, name: str, x: str) -> str:
        graph = self._graph
        window = {"kernel_shape": [2, 2], "strides": [2, 2]}
        if name == "gray":
            luma = graph.constant(np.array(LUMA, np.float32).reshape(3, 1, 1))
            weighted = graph.add("Mul", x, luma)
            return graph.add("ReduceSum", weighted, graph.constant([1]), keepdims=1, name=name)
        if "_conv" in name:
            return self._add_conv(name, x)
        if "_bn" in name:
            arrays = [self._array(name, param) for param in ("scale", "bias", "mean", "var")]
            x = graph.add("BatchNormalization", x, *arrays, name=f"{name}/norm", epsilon=EPSILON)
            return graph.add("Relu", x, name=name)
        if name.endswith("_pool"):
            return graph.add("MaxPool", x, name=name, **window)
        if name == "avg2":
            return graph.add("AveragePool", x, name=name, **window)
        if name == "gap":
            mean = graph.add("GlobalAveragePool", x)
            return graph.add("Flatten", mean, name=name)
        if name == "flatten":  # Keras' order, channels last
            x = graph.add("Transpose", x, perm=[0, 2, 3, 1])
            return graph.add("Flatten", x, name=name)
        if name == "predictions":  # the logits over the temperature, which keeps the arrays exact
            scale = 1 / self._temperature
            return self._add_dense(name, x, output=name, alpha=scale, beta=scale)
        if name.startswith("fc"):
            return graph.add("Relu", self._add_dense(name, x, output=f"{name}/dense"), name=name)
        return x  # dropout

    def _add_conv(self, name: str, x: str) -> str:
        kernel = self._array(name, "kernel", order=(3, 2, 0, 1))  # HWIO -> OIHW
        border = 1 if self._model.arch.padding == "SAME" else 0
        has_norm = name.replace("_conv", "_bn") in self._weights
        x = self._graph.add(
            "Conv",
            *(x, kernel, self._array(name, "bias")),
            name=name if has_norm else f"{name}/conv",
            kernel_shape=[3, 3],
            pads=[border] * 4,
        )
        return x if has_norm else self._graph.add("Relu", x, name=name)

    def _add_dense(self, name: str, x: str, *, output: str, **factors: float) -> str:
        arrays = (self._array(name, "kernel"), self._array(name, "bias"))
        return self._graph.add("Gemm", x, *arrays, name=output, **factors)

    def _array(self, layer: str, param: str, *, order: tuple[int, ...] | None = None) -> str:
        array = self._weights[layer][param].astype(np.float32)
        array = array if order is None else array.transpose(order)
        return self._graph.constant(array, name=f"{layer}/{param}")


def _add_outputs(graph: Graph, logits: str, info: ModelInfo) -> list:
    """Add what follows the logits; return the graph's outputs."""
    num_classes = len(info.class_names)
    probabilities = helper.make_tensor_value_info(
        "probabilities", TensorProto.FLOAT, ["N", num_classes]
    )
    if info.is_multilabel:
        graph.add("Sigmoid", logits, name="probabilities")
        thresholds = graph.constant(np.array(info.thresholds, np.float32), name="thresholds")
        graph.add("GreaterOrEqual", "probabilities", thresholds, name="labels")
        labels = helper.make_tensor_value_info("labels", TensorProto.BOOL, ["N", num_classes])
        return [probabilities, labels]
    if Head.parse(info.head).outputs == 1:  # a sigmoid unit for the second of two classes
        shares = [graph.add("Sigmoid", x) for x in (graph.add("Neg", logits), logits)]
        graph.add("Concat", *shares, axis=1, name="probabilities")
    else:
        graph.add("Softmax", logits, axis=1, name="probabilities")
    best = graph.add("ArgMax", "probabilities", axis=1, keepdims=0)
    class_names = graph.constant(info.class_names, name="class_names")
    graph.add("Gather", class_names, best, name="names")
    return [probabilities, helper.make_tensor_value_info("names", TensorProto.STRING, ["N"])]


def write(path: Path, model: Network, info: ModelInfo, metadata: dict[str, str]) -> None:
    """Write the ONNX model of a classifier; its opset is `OPSET`."""
    path.write_bytes(make_onnx(model, info, metadata).SerializeToString())
