"""Brings a file's arrays into this package's order and back, block by block.

The package's order is Keras': kernels HWIO or (in, out). torch has OIHW and (out, in), and a dense
layer behind a flattened map takes its inputs by channel, row, column where Keras takes row, column,
channel. Each order is a `Turn`; there and back gives the same bits. float16 and float64 become
float32; NaN and infinity are refused.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from vggjax.weights.safetensors import BLOCK_BYTES, Tensor
from vggjax.weights.tensor_spans import to_float32

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Turn:
    """How an array stands in a file, and how it stands here: the outputs first, and last."""

    ours: Callable[[Shape], Shape]
    """The file's shape -> ours."""
    theirs: Callable[[Shape], Shape]
    """Our shape -> the file's."""
    view: Callable[[np.ndarray], np.ndarray]
    """Some of the outputs as the file has them -> the same numbers as ours."""
    back: Callable[[np.ndarray], np.ndarray]
    """Some of the outputs as ours -> the same numbers as the file has them."""


CONV = Turn(  # OIHW <-> HWIO
    lambda shape: (*shape[2:], shape[1], shape[0]),
    lambda shape: (shape[3], shape[2], *shape[:2]),
    lambda rows: rows.transpose(2, 3, 1, 0),
    lambda part: part.transpose(3, 2, 0, 1),
)
DENSE = Turn(lambda s: s[::-1], lambda s: s[::-1], lambda rows: rows.T, lambda part: part.T)
VECTOR = Turn(lambda s: s, lambda s: s, lambda rows: rows, lambda part: part)


def flattened(channels: int) -> Turn:
    """The turn of (out, C*H*W) and (H*W*C, out); the map's sides need not be known."""

    def view(rows: np.ndarray) -> np.ndarray:
        out = len(rows)
        return rows.reshape(out, channels, -1).transpose(2, 1, 0).reshape(-1, out)

    def back(part: np.ndarray) -> np.ndarray:
        out = part.shape[1]
        return part.reshape(-1, channels, out).transpose(2, 1, 0).reshape(out, -1)

    return Turn(DENSE.ours, DENSE.theirs, view, back)


def window(side: int) -> Turn:
    """The turn of a convolution over the whole map, OIHW, and a dense layer behind a flatten."""
    return Turn(
        lambda shape: (shape[2] * shape[3] * shape[1], shape[0]),
        lambda shape: (shape[1], shape[0] // side**2, side, side),
        lambda rows: rows.transpose(2, 3, 1, 0).reshape(-1, len(rows)),
        lambda part: part.reshape(side, side, -1, part.shape[1]).transpose(3, 2, 0, 1),
    )


def read_plain(tensor: Tensor) -> np.ndarray:
    """Reads a tensor as float32 in the file's own order.

    Raises:
        WeightsError: NaN or infinity in it, also such as appear only in float32.
    """
    array = np.empty(tensor.shape, np.float32)
    for start, stop, rows in tensor.blocks():
        with np.errstate(over="ignore"):
            array[start:stop] = rows
    return to_float32(array, tensor.where)


def read_turned(tensor: Tensor, turn: Turn) -> np.ndarray:
    """Reads a tensor as float32 in this package's order.

    Raises:
        WeightsError: NaN or infinity in it, also such as appear only in float32.
    """
    array = np.empty(turn.ours(tensor.shape), np.float32)
    for start, stop, rows in tensor.blocks():
        with np.errstate(over="ignore"):
            array[..., start:stop] = turn.view(rows)
    return to_float32(array, tensor.where)


def turned_back(array: np.ndarray, turn: Turn) -> Iterator[np.ndarray]:
    """Gives an array of ours in blocks as the file wants them, one behind the other."""
    outputs = array.shape[-1]
    step = max(1, BLOCK_BYTES // max(array.nbytes // outputs, 1))
    for start in range(0, outputs, step):
        yield np.ascontiguousarray(turn.back(array[..., start : start + step]))
