"""Resize uint8 RGB images (H, W, 3) as Pillow does, bit for bit and several times as fast.

Compiled kernels that repeat Pillow's integer arithmetic do bilinear and bicubic without holding the
interpreter lock, if they were built (models/kernels/native/) and agree with the installed Pillow.
Pillow itself does `nearest` and everything else. preprocess.py decides the size of an image.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL
from PIL import Image

from vggjax.models.kernels.library import load_library

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "bicubic": Image.Resampling.BICUBIC,
}
_COMPILED = {"bilinear": 0, "bicubic": 1}
PILLOW_MAJOR = int(PIL.__version__.partition(".")[0])
"""The version of Pillow decides which direction is resized first."""

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of the image; rounded to float32, as in Pillow."""


def resize(
    image: np.ndarray,
    size: tuple[int, int],
    *,
    filter: str,
    box: Box | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Resize an image, or a box of it, to `size` (height, width); write to `out` if given.

    Raises:
        ValueError: `box` is not inside the image, or a size is 0.
    """
    if out is None:
        out = np.empty((*size, 3), np.uint8)
    height, width = image.shape[:2]
    is_order_unknown = (
        PILLOW_MAJOR < 13 and height > 100 * width
    )  # since 12.2 the height goes first
    if filter not in _COMPILED or is_order_unknown or not is_compiled():
        out[...] = _resize_by_pillow(image, size, filter, box)
    elif out.shape == (*size, 3) and _has_plain_rows(out):
        _resize_compiled(image, filter, box, out)
    else:
        out[...] = resize(image, size, filter=filter, box=box)
    return out


def is_compiled() -> bool:
    """Return whether the compiled kernels are in use; the first call loads and checks them."""
    return load_library() is not None and _agrees_with_pillow()


@functools.cache
def _agrees_with_pillow() -> bool:
    """Compare a few small images: a future Pillow may round differently, and is the reference."""
    for filter in _COMPILED:
        for height, width, *size in ((9, 31, 7, 5), (64, 21, 5, 11), (7, 5, 16, 23)):
            image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
            out = np.empty((*size, 3), np.uint8)
            _resize_compiled(image, filter, None, out)
            if (out != _resize_by_pillow(image, (size[0], size[1]), filter, None)).any():
                return False
    return True


def _goes_down_first(image: np.ndarray, size: tuple[int, int]) -> bool:
    """Return whether Pillow resizes the height first, which matters as it rounds in between."""
    lower, narrower = image.shape[0] - size[0], image.shape[1] - size[1]
    # Since 13, if the height loses more than twice as many pixels, whatever the box.
    return PILLOW_MAJOR >= 13 and lower > max(0, 2 * narrower)


def _resize_by_pillow(
    image: np.ndarray, size: tuple[int, int], filter: str, box: Box | None
) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size[::-1], FILTERS[filter], box=box))


@functools.cache
def _compiled_function() -> Callable[..., int]:
    """Return the library's `vggjax_resize` with its argument types declared."""
    library = load_library()
    assert library is not None
    image: list[Any] = [ctypes.c_void_p, *[ctypes.c_int64] * 3]
    box: list[Any] = [ctypes.c_double] * 4
    library.vggjax_resize.argtypes = [*image, *image, *box, ctypes.c_int, ctypes.c_int]
    return library.vggjax_resize


def _resize_compiled(image: np.ndarray, filter: str, box: Box | None, out: np.ndarray) -> None:
    """Fill `out`, whose rows must be plain (see `_has_plain_rows`)."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"An image must be uint8 (H, W, 3); got {image.dtype} {image.shape}.")
    if not _has_plain_rows(image):
        image = np.ascontiguousarray(image)
    (height, width, _), (to_height, to_width, _) = image.shape, out.shape
    status = _compiled_function()(
        *(image.ctypes.data, height, width, image.strides[0]),
        *(out.ctypes.data, to_height, to_width, out.strides[0]),
        *(box or (0, 0, width, height)),
        _COMPILED[filter],
        _goes_down_first(image, (to_height, to_width)),
    )
    if status == 1:
        raise MemoryError(f"No memory to resize {width} x {height} px to {to_width} x {to_height}.")
    if status:
        raise ValueError(
            f"Cannot resize the box {box} of {width} x {height} px to {to_width} x {to_height}: "
            f"the box must lie inside the image, and no side may be 0."
        )


def _has_plain_rows(image: np.ndarray) -> bool:
    """Return whether each row is contiguous RGB and the rows are in order."""
    rows, columns, channels = image.strides
    return (columns, channels) == (3, 1) and rows >= 3 * image.shape[1]
