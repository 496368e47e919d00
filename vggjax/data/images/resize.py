"""Resizes uint8 RGB images (H, W, 3) as Pillow does, bit for bit, several times as fast.

Bilinear and bicubic are done by a compiled copy of Pillow's arithmetic in whole numbers (native/),
which holds no lock of Python's, where it was built at installation and gives the installed Pillow's
pixels; `nearest`, and everything elsewhere, by Pillow itself. What size an image is given is not
decided here (see preprocess.py).
"""

import ctypes
import functools
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

LIBRARY = Path(__file__).parent / "native" / "resize.so"
"""Built by hatch_build.py; its absence is no error."""

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "bicubic": Image.Resampling.BICUBIC,
}
_COMPILED = {"bilinear": 0, "bicubic": 1}
_PILLOW = int(PIL.__version__.partition(".")[0])

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of the image; Pillow's, so each is rounded to float32."""


def resize(
    image: np.ndarray,
    size: tuple[int, int],
    *,
    filter: str,
    box: Box | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Resizes an image, or a box of it, to `size`, (height, width); into `out`, if it is given.

    Raises:
        ValueError: `box` is no part of the image, or a size is 0.
    """
    if out is None:
        out = np.empty((*size, 3), np.uint8)
    if filter not in _COMPILED or not native() or _is_order_unknown(image):
        out[...] = _by_pillow(image, size, filter, box)
    elif out.shape == (*size, 3) and _has_plain_rows(out):
        _by_library(_library(), image, filter, box, out)
    else:
        out[...] = resize(image, size, filter=filter, box=box)
    return out


@functools.cache
def native() -> bool:
    """Says whether the compiled code is there and right; the first call loads and tries it."""
    return _library() is not None


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(LIBRARY))
        function, name = library.vggjax_resize, library.vggjax_resize_variant
    except (OSError, AttributeError):  # not built, or another machine's
        return None
    image, box = [ctypes.c_void_p, *[ctypes.c_int64] * 3], [ctypes.c_double] * 4
    flags = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p]
    function.argtypes = [*image, *image, *box, *flags]
    name.argtypes, name.restype = [ctypes.c_int64], ctypes.c_char_p
    return library if _agrees_with_pillow(library) else None


def _agrees_with_pillow(library: ctypes.CDLL) -> bool:
    """Tries a few small images: a Pillow to come may round otherwise, and is the measure."""
    for filter in _COMPILED:
        for height, width, *size in ((9, 31, 7, 5), (64, 21, 5, 11), (7, 5, 16, 23)):
            image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
            out = np.empty((*size, 3), np.uint8)
            _by_library(library, image, filter, None, out)
            if (out != _by_pillow(image, tuple(size), filter, None)).any():
                return False
    return True


def _is_order_unknown(image: np.ndarray) -> bool:
    """Says whether this Pillow may resize in an order that another release of it would not."""
    height, width = image.shape[:2]
    return _PILLOW < 13 and height > 100 * width  # since 12.2 the height goes first


def _goes_down_first(image: np.ndarray, size: tuple[int, int]) -> bool:
    """Says whether Pillow resizes the height before the width; it rounds between, so it shows."""
    lower, narrower = image.shape[0] - size[0], image.shape[1] - size[1]
    # From 13 on where the height loses more than twice as many pixels, whatever the box.
    return _PILLOW >= 13 and lower > max(0, 2 * narrower)


def _by_pillow(image: np.ndarray, size: tuple[int, int], filter: str, box: Box | None):
    return np.asarray(Image.fromarray(image).resize(size[::-1], FILTERS[filter], box=box))


def _by_library(
    library: ctypes.CDLL,
    image: np.ndarray,
    filter: str,
    box: Box | None,
    out: np.ndarray,
    variant: str | None = None,
) -> None:
    """Fills `out`, which has plain rows; `variant` names an instruction set, for tests."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"An image must be uint8 (H, W, 3); got {image.dtype} {image.shape}.")
    if not _has_plain_rows(image):
        image = np.ascontiguousarray(image)
    (height, width, _), (to_height, to_width, _) = image.shape, out.shape
    left, top, right, bottom = box or (0, 0, width, height)
    failed = library.vggjax_resize(
        image.ctypes.data,
        height,
        width,
        image.strides[0],
        out.ctypes.data,
        to_height,
        to_width,
        out.strides[0],
        left,
        top,
        right,
        bottom,
        _COMPILED[filter],
        _goes_down_first(image, out.shape[:2]),
        variant and variant.encode(),
    )
    if failed == 1:
        raise MemoryError(f"No memory to resize {width} x {height} px to {to_width} x {to_height}.")
    if failed:
        raise ValueError(
            f"Cannot resize the box {box} of {width} x {height} px to {to_width} x {to_height}: "
            f"the box must lie in the image, and no side be 0."
        )


def _has_plain_rows(image: np.ndarray) -> bool:
    rows, columns, channels = image.strides
    return (columns, channels) == (3, 1) and rows >= 3 * image.shape[1]
