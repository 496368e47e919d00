"""Find a VGG's layers in an ONNX file by its graph: the order of its nodes, whatever their names.

The file is a protobuf message. It is parsed here, down to the positions of its arrays: the `onnx`
library would hold all of it in memory twice, and open other files that it names. The numbers of the
fields are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

import io
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from vggjax.errors import WeightsError, join_names, printable
from vggjax.weights.layout import AS_IS, CONV, DENSE, flattened
from vggjax.weights.parsed_file import FileInfo, ParsedFile, Plan
from vggjax.weights.tensor_spans import (
    FLOATS,
    MAX_ELEMENTS,
    LoadedSpan,
    Readable,
    Span,
    check_spans,
    open_regular,
)

MAX_FIELDS = 200_000
"""The most fields that are parsed; VGG19 with batch normalization has about 2,000."""

_MAX_TEXT_BYTES = 2**12
_DTYPES = {1: "<f4", 10: "<f2", 11: "<f8", 16: "<bf2"}
"""TensorProto.DataType -> the type of a span."""
_TYPED_DATA = {4: "<f4", 10: "<f8"}
"""The fields `float_data` and `double_data`."""

_GLUON_NAME = re.compile(r"vgg\d+_conv\d+_weight")
"""The names of MXNet's VGG in the ONNX model zoo, trained on the same pixels as torchvision's."""


def is_onnx(start: bytes) -> bool:
    """Return whether a file that starts like this has a version, then its producer or its graph."""
    if re.match(rb"\x08[\x01-\x7f]\x3a", start):
        return True
    match = re.match(rb"\x08[\x01-\x7f]\x12([\x01-\x7f])", start)
    name = start[match.end() : match.end() + match[1][0]] if match else b""
    return bool(name) and name.isascii() and name.decode("ascii").isprintable()


def parse_onnx(path: Path) -> ParsedFile:
    """Find the layers of an ONNX file and where their arrays lie; read no number."""
    with open_regular(path) as raw, io.BufferedReader(raw) as buffered:
        size_bytes = buffered.seek(0, io.SEEK_END)
        model = _Parser(buffered, size_bytes, path.parent).parse()
    network = _Network(model.tensors)
    for node in model.nodes:
        network.add(node)
    plan, left_out = network.plan()
    spans: dict[Path, dict[int | None, Span]] = {}
    for span, _ in (array for arrays in plan.values() for array in arrays.values()):
        file = span.path if isinstance(span, BesideSpan) else path
        if not isinstance(span, LoadedSpan):  # zeros, which are not in the file
            spans.setdefault(file, {})[span.start] = span  # equal biases are often one array
    for file, inside in spans.items():
        check_spans(inside.values(), size_bytes=os.stat(file).st_size)
    others = tuple(file for file in spans if file != path)
    left_out += [f"read numbers from {printable(file.name)} beside it" for file in others]
    determined, doubt = None, ""
    if model.producer == "pytorch" or any(map(_GLUON_NAME.fullmatch, model.tensors)):
        determined = "torch"
    elif network.before:
        doubt = f"its graph computes something before the first convolution ({network.before[0]})"
    elif not any("block1_conv1" in name for name in model.tensors):
        doubt = "neither its names nor its graph show on which pixels it was trained"
    title = f"ONNX, by {model.producer or 'unknown'}"
    metadata = model.metadata if model.producer == "vggjax" else {}
    info = FileInfo(title, metadata, determined, "" if metadata else doubt)
    return ParsedFile(info, plan, left_out, numbers_beside=others)


@dataclass(frozen=True)
class BesideSpan(Span):
    """An array in another file, as torch exports networks."""

    path: Path = Path()

    def read(self, file: Readable) -> np.ndarray:
        """Read the array as finite float32; `file` is not used."""
        with open_regular(self.path) as data:
            return super().read(data)

    def rows(self, file: Readable, start: int, stop: int) -> np.ndarray:
        """Read the rows from `start` to `stop`; `file` is not used."""
        with open_regular(self.path) as data:
            return super().rows(data, start, stop)


@dataclass(frozen=True)
class _Node:
    """An operation: its inputs and outputs by name, and two of its attributes."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    perm: tuple[int, ...] = ()
    trans_b: bool = False


@dataclass
class _Model:
    producer: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    """The network and the pixels that an export of this package states."""
    nodes: list[_Node] = field(default_factory=list)
    tensors: dict[str, Span] = field(default_factory=dict)


class _Parser:
    """Parses the messages of an ONNX file that say which arrays its operations have."""

    def __init__(self, file: IO[bytes], size_bytes: int, folder: Path):
        self._file, self._size_bytes, self._folder = file, size_bytes, folder
        self._num_fields = 0
        self._model = _Model()

    def parse(self) -> _Model:
        """Parse the whole file, except for the numbers of its arrays."""
        for number, value in self._fields((0, self._size_bytes)):
            if number == 2:
                self._model.producer = self._text(value)
            elif number == 14:
                self._state(value)
            elif number == 7:
                self._graph(value)
        return self._model

    def _state(self, message: Any) -> None:
        entry = dict(self._fields(message))
        if (name := self._text(entry.get(1))) in ("arch", "preprocess"):
            self._model.metadata[name] = self._text(entry.get(2))

    def _graph(self, message: Any) -> None:
        for number, value in self._fields(message):
            if number == 1:
                self._node(value)
            elif number == 5:
                span = self._tensor(value)
                self._add_tensor(span.where, span)

    def _add_tensor(self, name: str, span: Span) -> None:
        if name in self._model.tensors:
            raise WeightsError(f"it has two arrays {name!r}.", code="E_DUPLICATE")
        self._model.tensors[name] = replace(span, where=repr(name))

    def _node(self, message: Any) -> None:
        texts: dict[int, list[str]] = {1: [], 2: [], 4: [""]}  # input, output, op_type
        perm: list[int] = []
        trans_b, constant = False, None
        for number, value in self._fields(message):
            if number in texts:
                texts[number].append(self._text(value))
            elif number == 5:
                attribute = list(self._fields(value))
                name = next((self._text(v) for k, v in attribute if k == 1), "")
                for key, item in attribute:
                    if (name, key) == ("perm", 8):
                        perm += self._integers(item)
                    elif (name, key) == ("transB", 3):
                        trans_b = item == 1
                    elif (name, key) == ("value", 5):
                        constant = item
        op, inputs, outputs = texts[4][-1], tuple(texts[1]), tuple(texts[2])
        if op == "Constant" and constant is not None and outputs:
            self._add_tensor(outputs[0], self._tensor(constant))
        else:
            self._model.nodes.append(_Node(op, inputs, outputs, tuple(perm), trans_b))

    def _tensor(self, message: Any) -> Span:
        """Return an array, called as in the file."""
        shape: list[int] = []
        name, kind, dtype, place = "", 0, "", (0, 0)
        beside: dict[str, str] = {}
        for number, value in self._fields(message):
            if number == 1:
                shape += self._integers(value)
            elif number == 2:
                kind = value
            elif number == 8:
                name = self._text(value)
            elif number == 9 and isinstance(value, tuple):
                dtype, place = _DTYPES.get(kind, ""), value
            elif number in _TYPED_DATA and isinstance(value, tuple):
                dtype, place = _TYPED_DATA[number], value
            elif number == 13:
                entry = dict(self._fields(value))
                beside[self._text(entry.get(1))] = self._text(entry.get(2))
        if len(shape) > 8 or not all(0 <= size < 2**31 for size in shape):
            raise WeightsError(f"{name!r} claims the shape {shape[:8]}.", code="E_SHAPE")
        if beside:
            return self._beside(name, tuple(shape), _DTYPES.get(kind, ""), beside)
        if not dtype:  # no float, or floats in a form that no exporter of weights uses
            return Span(name, tuple(shape), f"ONNX's type {kind}")
        span = Span(name, tuple(shape), dtype, place[0])
        if span.nbytes != place[1] - place[0]:
            raise WeightsError(
                f"{name!r} has the shape {span.shape} in {place[1] - place[0]:,} bytes.",
                code="E_TRUNCATED",
            )
        return span

    def _beside(
        self, name: str, shape: tuple[int, ...], dtype: str, entries: dict[str, str]
    ) -> Span:
        """Return an array in a file of the same folder."""
        location, offset = entries.get("location", ""), entries.get("offset", "0")
        if location in ("", ".", "..") or re.search(r"[/\\:]", location) or not offset.isdecimal():
            raise WeightsError(
                f"its array {name!r} is in {location!r}, which is not a file beside it; none was "
                f"opened. Put all into one where onnx is installed: onnx.save(onnx.load(FILE), "
                f"NEW).",
                code="E_EXTERNAL",
            )
        if not (path := self._folder / location).is_file():
            raise WeightsError(
                f"its numbers are in {location!r}, which is missing beside it. Put both into one "
                f"folder.",
                code="E_EXTERNAL",
            )
        return BesideSpan(name, shape, dtype or "no float", int(offset), path=path)

    def _fields(self, message: Any) -> Iterator[tuple[int, Any]]:
        """Yield the fields of a message, (number, value): an integer, or (first byte, end)."""
        if not isinstance(message, tuple):
            raise _damage("a message is a number")
        position, end = message
        while position < end:
            self._num_fields += 1
            if self._num_fields > MAX_FIELDS:
                raise WeightsError("it has more parts than any VGG's graph.", code="E_BOMB")
            self._file.seek(position)
            head = self._file.read(min(20, end - position))
            key, used = _varint(head, 0)
            number, wire = key >> 3, key & 7
            value: Any = None
            if wire == 0:
                value, used = _varint(head, used)
            elif wire == 2:
                length, used = _varint(head, used)
                value = (position + used, position + used + length)
                used += length
            elif wire in (1, 5):
                used += 8 if wire == 1 else 4
            else:
                raise _damage(f"a field of kind {wire}")
            position += used
            if position > end:
                raise WeightsError(
                    f"it is truncated: a part of it ends at byte {position:,} of {end:,}.",
                    code="E_TRUNCATED",
                )
            yield number, value

    def _text(self, value: Any) -> str:
        """Return a string, printable."""
        if not isinstance(value, tuple) or value[1] - value[0] > _MAX_TEXT_BYTES:
            raise _damage("a name is missing or too long")
        self._file.seek(value[0])
        return printable(self._file.read(value[1] - value[0]).decode("utf-8", "replace"))

    def _integers(self, value: Any) -> list[int]:
        """Return the integers of a repeated field: one, or several in a row of bytes."""
        if isinstance(value, int):
            return [value]
        if not isinstance(value, tuple) or value[1] - value[0] > _MAX_TEXT_BYTES:
            raise _damage("a shape is no list of numbers")
        self._file.seek(value[0])
        row, position, numbers = self._file.read(value[1] - value[0]), 0, []
        while position < len(row):
            number, position = _varint(row, position)
            numbers.append(number)
        return numbers


def _varint(row: bytes, position: int) -> tuple[int, int]:
    """Return the integer that begins at a position, and the position after it."""
    value = 0
    for i, byte in enumerate(row[position : position + 10]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, position + i + 1
    raise _damage("a number does not end")


def _damage(reason: str) -> WeightsError:
    return WeightsError(f"it is damaged, or not an ONNX file: {reason}.", code="E_FORMAT")


@dataclass
class _Layer:
    """A layer of the graph with its arrays, as stored."""

    kernel: Span
    outputs_first: bool
    """The kernel is (out, ...), not (in, out)."""
    bias: Span | None = None
    norm: dict[str, Span] = field(default_factory=dict)


class _Network:
    """The layers that the nodes of a graph make up, in order."""

    def __init__(self, tensors: dict[str, Span]):
        self.before: list[str] = []
        """Operations with numbers of their own before the first convolution."""
        self._after: list[str] = []
        """The same after it, where a VGG has none."""
        self._tensors = dict(tensors)
        self._base: dict[str, _Layer] = {}
        self._top: list[_Layer] = []
        self._block, self._conv = 1, 0
        self._last: _Layer | None = None
        """The layer whose output the next node takes, if that may add to it."""
        self._channels_last = False
        """Whether the feature map was transposed to NHWC: a flatten then gives Keras' order."""

    def add(self, node: _Node) -> None:
        """Add a node to the layers."""
        named = [self._tensors[name] for name in node.inputs if name in self._tensors]
        arrays = [span for span in named if span.dtype in FLOATS]
        last, self._last = self._last, None
        if node.op == "Identity" and arrays:
            self._tensors[node.outputs[0]], self._last = arrays[0], last
        elif node.op == "MaxPool":
            self._block, self._conv = self._block + bool(self._conv), 0
        elif node.op == "Transpose" and not named:
            self._channels_last = node.perm == (0, 2, 3, 1)
        elif node.op == "MatMul" and not named and not self._base:
            pass  # resizes the images, as this package's exports do
        elif node.op in ("Conv", "Gemm", "MatMul"):
            self._add_weighted(node)
        elif node.op in ("QLinearConv", "ConvInteger"):
            raise WeightsError(
                f"it is quantized ({node.op}): the weights are not in it.", code="E_DTYPE"
            )
        elif node.op == "Add" and last and not last.bias and len(arrays) == 1:
            last.bias, self._last = arrays[0], last
        elif node.op == "BatchNormalization" and last and len(arrays) == 4 and not self._top:
            last.norm = dict(zip(("scale", "bias", "mean", "var"), arrays, strict=True))
        elif arrays:
            (self._after if self._base else self.before).append(node.op)

    def _add_weighted(self, node: _Node) -> None:
        kernel = self._floats(node, 1)
        self._last = _Layer(kernel, outputs_first=node.op == "Conv" or node.trans_b)
        if node.inputs[2:] not in ((), ("",)):
            self._last.bias = self._floats(node, 2)
        if node.op != "Conv" or (self._base and kernel.shape[2:] != (3, 3)):
            self._top.append(self._last)  # timm writes dense layers as convolutions
            return
        if others := self._after + ["a dense layer"] * bool(self._top):
            raise WeightsError(
                f"between its convolutions it has {join_names(others)}, which no VGG has.",
                code="E_ARCH",
            )
        self._conv += 1
        if max(self._block, self._conv) > 9:
            raise WeightsError("it has more layers than any VGG.", code="E_ARCH")
        self._base[f"block{self._block}_conv{self._conv}"] = self._last

    def _floats(self, node: _Node, i: int) -> Span:
        span = self._tensors.get(node.inputs[i]) if len(node.inputs) > i else None
        if span is None or span.dtype not in FLOATS:
            raise WeightsError(
                f"an array of its {node.op} is {'computed' if span is None else span.dtype}. "
                f"Export the network without quantization, and with constants folded.",
                code="E_DTYPE",
            )
        return span

    def plan(self) -> tuple[Plan, list[str]]:
        """Return the arrays of each layer, and lines about what is left out."""
        plan: Plan = {}
        for name, layer in self._base.items():
            bias = layer.bias or _zeros(layer.kernel.shape[0])
            plan[name] = {"kernel": (layer.kernel, CONV), "bias": (_vector(bias), AS_IS)}
            if layer.norm:
                norm = {param: (_vector(span), AS_IS) for param, span in layer.norm.items()}
                plan[name.replace("conv", "bn")] = norm
        if not plan:
            raise WeightsError("its graph has no convolution, so no VGG.", code="E_MISSING")
        top, left_out = self._plan_top(), []
        if self._top and not top:
            what = join_names(dict.fromkeys(self._after)) or "other dense layers"
            left_out.append(f"left out the top, which is not a VGG's: it has {what}")
        return plan | top, left_out

    def _plan_top(self) -> Plan:
        """Return the dense layers; none if they are not a chain on the base and nothing else."""
        width = inputs = list(self._base.values())[-1].kernel.shape[0]
        plan: Plan = {}
        for i, layer in enumerate(self._top, 1):
            shape, name = layer.kernel.shape, "predictions" if i == len(self._top) else f"fc{i}"
            if layer.outputs_first:
                kernel = replace(layer.kernel, shape=(shape[0], math.prod(shape[1:])))
                received, outputs = kernel.shape[::-1]
                is_flat = not plan and received != width and not self._channels_last
                layout = flattened(width) if is_flat else DENSE
            else:
                kernel, layout, (received, outputs) = layer.kernel, AS_IS, (shape[0], shape[-1])
            is_chain = received == inputs if plan else received % width == 0
            # A matrix (in, out) on a flattened NCHW map has an order that no layout here has.
            if not layer.outputs_first and not plan and received != width:
                is_chain &= self._channels_last
            if self._after or not is_chain:
                return {}
            bias = layer.bias or _zeros(outputs)
            plan[name] = {"kernel": (kernel, layout), "bias": (_vector(bias), AS_IS)}
            inputs = outputs
        return plan


def _vector(span: Span) -> Span:
    """Return the array with one axis, as in (1, C, 1, 1) -> (C,)."""
    return replace(span, shape=(span.size,))


def _zeros(size: int) -> Span:
    """Return the bias of a layer without one; exporters leave out a bias that is 0."""
    size = min(size, MAX_ELEMENTS)
    return LoadedSpan("a bias of 0", (size,), "<f4", array=np.zeros(size, np.float32))
