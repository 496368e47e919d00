"""Pillow's resize as ONNX operators, bit for bit, for images of any size.

ONNX's own Resize has other coefficients and does not round as Pillow does. Here each direction is
a product with a matrix of Pillow's coefficients, whole multiples of 2^-22, which the graph computes
from the image's size in float64: every product and sum is exact. The source of the arithmetic is
Pillow's src/libImaging/Resample.c, and Geometry.c for `nearest`.
"""

from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from vggjax.data.images.preprocess import Preprocessing, short_side
from vggjax.data.images.resize import PILLOW_MAJOR
from vggjax.export.onnx_graph import Graph

_ONE = 2.0**22
"""A coefficient of 1 in Pillow's fixed-point numbers."""


class _Axis(NamedTuple):
    """One direction of the image, as names of scalars in the graph."""

    size: str
    """int64, pixels of the image."""
    begin: str
    """float64, the first end of the box that is resized; a float32 as in Pillow."""
    span: str
    """float64, the length of the box."""


def add_resize(graph: Graph, images: str, preprocessing: Preprocessing) -> str:
    """Add the resize of `images`, uint8 (N, H, W, 3); return it, float32 (N, 3, S, S), 0 to 255."""
    size, kind = preprocessing.image_size, preprocessing.interpolation
    shape = graph.add("Shape", images, name="image_shape")
    height, width = (graph.add("Gather", shape, graph.constant(axis)) for axis in (1, 2))
    rows, columns = _box(graph, height, width, preprocessing)
    pixels = graph.add("Transpose", images, perm=[0, 3, 1, 2])
    if kind == "nearest":
        pixels = graph.add("Gather", pixels, _nearest(graph, rows, size), axis=2)
        pixels = graph.add("Gather", pixels, _nearest(graph, columns, size), axis=3)
    else:
        pixels = graph.add("Cast", pixels, to=TensorProto.DOUBLE)
        down = _coefficients(graph, rows, size, kind)
        across = graph.add("Transpose", _coefficients(graph, columns, size, kind), perm=[1, 0])
        if PILLOW_MAJOR < 13:
            pixels = _down(graph, _across(graph, pixels, across), down)
        else:
            first = _goes_down_first(graph, height, width, size)
            then, otherwise = Graph(graph), Graph(graph)
            pixels = graph.choose(
                first,
                (then, _across(then, _down(then, pixels, down), across)),
                (otherwise, _down(otherwise, _across(otherwise, pixels, across), down)),
                kind=TensorProto.DOUBLE,
            )
    return graph.add("Cast", pixels, to=TensorProto.FLOAT, name="resized")


def _box(
    graph: Graph, height: str, width: str, preprocessing: Preprocessing
) -> tuple[_Axis, _Axis]:
    """Return the rows and columns that are resized: all, or those of the center crop."""
    sides = [graph.add("Cast", side, to=TensorProto.DOUBLE) for side in (height, width)]
    size, zero = graph.constant(float(preprocessing.image_size)), graph.constant(0.0)
    if preprocessing.resize == "squash":
        return _Axis(height, zero, sides[0]), _Axis(width, zero, sides[1])
    short = graph.constant(float(short_side(preprocessing.image_size)))
    scale = graph.add("Div", short, graph.add("Min", *sides))
    axes = []
    for side, length in zip((height, width), sides, strict=True):
        full = graph.add("Max", short, graph.add("Floor", graph.add("Mul", length, scale)))
        border = graph.add("Div", graph.add("Sub", full, size), graph.constant(2.0))
        first = graph.add("Round", border)  # half to even, as in Python
        pixel = graph.add("Div", length, full)
        ends = [first, graph.add("Add", first, size)]
        begin, end = (
            graph.add("Cast", graph.add("Mul", end, pixel), to=TensorProto.FLOAT) for end in ends
        )
        span = graph.add("Sub", end, begin)
        axes.append(
            _Axis(side, *(graph.add("Cast", x, to=TensorProto.DOUBLE) for x in (begin, span)))
        )
    return axes[0], axes[1]


def _coefficients(graph: Graph, axis: _Axis, size: int, filter: str) -> str:
    """Return the matrix (S, pixels) of one direction, float64 multiples of 1 that stand for 2^-22.

    Outside the filter's support the filter itself is 0, so that every row may cover all pixels.
    """
    scale = graph.add("Div", axis.span, graph.constant(float(size)))
    step = graph.add("Div", graph.constant(1.0), graph.add("Max", scale, graph.constant(1.0)))
    middles = graph.constant(np.arange(size)[:, None] + 0.5, name="output_pixels")
    center = graph.add("Add", axis.begin, graph.add("Mul", middles, scale))  # (S, 1)
    pixels = graph.add("Range", graph.constant(0), axis.size, graph.constant(1))
    pixels = graph.add("Cast", pixels, to=TensorProto.DOUBLE)  # (pixels,)
    offset = graph.add("Add", graph.add("Sub", pixels, center), graph.constant(0.5))
    distance = graph.add("Abs", graph.add("Mul", offset, step))
    weights = (_triangle if filter == "bilinear" else _cubic)(graph, distance)
    total = graph.add("ReduceSum", weights, graph.constant([1]), keepdims=1)
    weights = graph.add("Div", weights, total)
    rounded = graph.add("Mul", graph.add("Abs", weights), graph.constant(_ONE))
    rounded = graph.add("Floor", graph.add("Add", rounded, graph.constant(0.5)))
    return graph.add("Mul", graph.add("Sign", weights), rounded)


def _triangle(graph: Graph, x: str) -> str:
    return graph.add("Max", graph.add("Sub", graph.constant(1.0), x), graph.constant(0.0))


def _cubic(graph: Graph, x: str) -> str:
    """Add Keys' filter with a = -1/2, in Pillow's order of operations."""

    def horner(*terms: tuple[str, float | str]) -> str:
        value = x
        for op, number in terms:
            name = number if isinstance(number, str) else graph.constant(number)
            value = graph.add(op, value, name)
        return value

    near = horner(("Mul", 1.5), ("Sub", 2.5), ("Mul", x), ("Mul", x), ("Add", 1.0))
    far = horner(("Sub", 5.0), ("Mul", x), ("Add", 8.0), ("Mul", x), ("Sub", 4.0), ("Mul", -0.5))
    is_far = graph.add("Less", x, graph.constant(2.0))
    outer = graph.add("Where", is_far, far, graph.constant(0.0))
    return graph.add("Where", graph.add("Less", x, graph.constant(1.0)), near, outer)


def _across(graph: Graph, pixels: str, coefficients: str) -> str:
    return _to_bytes(graph, graph.add("MatMul", pixels, coefficients))


def _down(graph: Graph, pixels: str, coefficients: str) -> str:
    return _to_bytes(graph, graph.add("MatMul", coefficients, pixels))


def _to_bytes(graph: Graph, sums: str) -> str:
    """Add Pillow's rounding of a sum of pixels times coefficients to 0 ... 255."""
    sums = graph.add("Add", sums, graph.constant(_ONE / 2))
    whole = graph.add("Floor", graph.add("Div", sums, graph.constant(_ONE)))
    return graph.add("Clip", whole, graph.constant(0.0), graph.constant(255.0))


def _goes_down_first(graph: Graph, height: str, width: str, size: int) -> str:
    """Add the rule of Pillow 13: the height first, if it loses more than twice as many pixels."""
    lower, narrower = (graph.add("Sub", side, graph.constant(size)) for side in (height, width))
    twice = graph.add("Mul", narrower, graph.constant(2))
    return graph.add("Greater", lower, graph.add("Max", twice, graph.constant(0)))


def _nearest(graph: Graph, axis: _Axis, size: int) -> str:
    """Return the pixel of each of S outputs, int64 (S,); Pillow adds the step up from the first."""
    step = graph.add("Div", axis.span, graph.constant(float(size)))
    half = graph.add("Mul", step, graph.constant(0.5))
    is_first = graph.constant(np.arange(size) == 0, name="is_first_output")
    steps = graph.add("Where", is_first, graph.add("Add", axis.begin, half), step)
    places = graph.add("CumSum", steps, graph.constant(0))
    index = graph.add("Cast", places, to=TensorProto.INT64)
    last = graph.add("Sub", axis.size, graph.constant(1))
    return graph.add("Min", index, last)
