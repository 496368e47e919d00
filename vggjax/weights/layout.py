"""Convert arrays between a file's order of axes and this package's, block by block.

The package holds arrays as Keras does: kernels HWIO or (in, out). torch stores OIHW and (out, in),
and a dense layer after a flattened feature map has its inputs ordered by channel, row, column where
Keras has row, column, channel. Both directions are permutations: there and back gives the same
bits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vggjax.weights.tensor_spans import BLOCK_BYTES, Readable, Span, to_float32

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How a file stores an array, outputs first, and how the package holds it, outputs last."""

    held_shape: Callable[[Shape], Shape]
    """The stored shape -> the held shape."""
    stored_shape: Callable[[Shape], Shape]
    """The held shape -> the stored shape."""
    to_held: Callable[[np.ndarray], np.ndarray]
    """Some outputs, as stored -> the same numbers as held."""
    to_stored: Callable[[np.ndarray], np.ndarray]
    """Some outputs, as held -> the same numbers as stored."""


def _same(value: Any) -> Any:
    return value


AS_IS = Layout(_same, _same, _same, _same)
"""Vectors, and every array of a file with the package's own order."""

CONV = Layout(  # OIHW <-> HWIO
    lambda shape: (*shape[2:], shape[1], shape[0]),
    lambda shape: (shape[3], shape[2], *shape[:2]),
    lambda rows: rows.transpose(2, 3, 1, 0),
    lambda part: part.transpose(3, 2, 0, 1),
)
DENSE = Layout(lambda s: s[::-1], lambda s: s[::-1], lambda rows: rows.T, lambda part: part.T)


def flattened(channels: int) -> Layout:
    """Return the layout (out, C*H*W) <-> (H*W*C, out) of a dense layer after a flatten."""

    def to_held(rows: np.ndarray) -> np.ndarray:
        out = len(rows)
        return rows.reshape(out, channels, -1).transpose(2, 1, 0).reshape(-1, out)

    def to_stored(part: np.ndarray) -> np.ndarray:
        out = part.shape[1]
        return part.reshape(-1, channels, out).transpose(2, 1, 0).reshape(out, -1)

    return Layout(DENSE.held_shape, DENSE.stored_shape, to_held, to_stored)


def whole_map(side: int) -> Layout:
    """Return the layout of a convolution over a whole map of `side`, OIHW <-> (H*W*I, O)."""
    return Layout(
        lambda shape: (shape[2] * shape[3] * shape[1], shape[0]),
        lambda shape: (shape[1], shape[0] // side**2, side, side),
        lambda rows: rows.transpose(2, 3, 1, 0).reshape(-1, len(rows)),
        lambda part: part.reshape(side, side, -1, part.shape[1]).transpose(3, 2, 0, 1),
    )


def read_array(file: Readable, span: Span, layout: Layout) -> np.ndarray:
    """Read an array as finite float32 in the package's order."""
    if layout is AS_IS:
        return span.read(file)
    array = np.empty(layout.held_shape(span.shape), np.float32)
    for start, stop, rows in span.blocks(file):
        with np.errstate(over="ignore"):
            array[..., start:stop] = layout.to_held(rows)
    return to_float32(array, span.where)


@dataclass(frozen=True)
class TensorToWrite:
    """An array to write: its name in the file, the array as held, and how the file stores it."""

    name: str
    array: np.ndarray
    layout: Layout = AS_IS

    @property
    def shape(self) -> Shape:
        """The stored shape."""
        return self.layout.stored_shape(self.array.shape)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield contiguous blocks whose concatenation is the stored array."""
        if self.layout is AS_IS:
            yield np.ascontiguousarray(self.array)
            return
        outputs = self.array.shape[-1]
        step = max(1, BLOCK_BYTES // max(self.array.nbytes // outputs, 1))
        for start in range(0, outputs, step):
            part = self.array[..., start : start + step]
            yield np.ascontiguousarray(self.layout.to_stored(part))
