"""Scale pixels of more than 8 bits to 8: 16-bit gray and color, signed and 32-bit integers, floats.

Which numbers become black and white is the `pixel_range`, (low, high). Without one, 16 bits are
taken whole, floats from 0 to 1 or from 0 to 255, and other numbers have no known range. A scanner
that uses 12 of the 16 bits, or a window of them, thus leaves 17 gray levels of 256: a dataset's
own range is found by sources/pixel_range.py.
"""

import io
import math
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from vggjax.errors import DataError

GRAY_16, COLOR_16 = "16-bit gray scaled to 8 bits", "16-bit color scaled to 8 bits"
FLOAT, INTEGER = "float pixels scaled to 8 bits", "integer pixels scaled to 8 bits"

_OUTLIERS = 0.001
"""Share of the pixels at either end that does not count if the others use less than a quarter."""

_GAP, _MIN_VALUES = 4, 16
"""A number that is so many times the range of the others away from them marks pixels without data,
as -9999 does; it is then black or white. With fewer different numbers nothing can be told."""

# In Pillow's raw modes; BGR;16 has 16 bits for a whole pixel.
_SIXTEEN_BITS = re.compile(r"(I|LA?|RGB[AaX]*|CMYK);16")

_PNM_HEADER = re.compile(rb"P([56])" + rb"(?:\s|#[^\n]*\n)+(\d{1,9})" * 3 + rb"\s")

_OTHER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
"""Byte order in a raw mode -> the other one."""


class EightBits(NamedTuple):
    """An image scaled to 8 bits."""

    image: Image.Image
    """Of mode L, RGB or RGBA."""
    extent: tuple[float, float] | None
    """Lowest and highest number before, without a few outliers; None if that was not looked at."""
    note: str


def is_deep(image: Image.Image) -> bool:
    """Return whether an image, not loaded yet, has more than 8 bits a channel."""
    tile = getattr(image, "tile", "")
    return image.mode in ("I", "F") or bool(_SIXTEEN_BITS.search(f"{image.mode} {tile}"))


def to_8_bits(
    image: Image.Image, data: bytes, pixel_range: tuple[float, float] | None
) -> EightBits:
    """Scale an image for which `is_deep` holds, which `data` encodes.

    Without data, the low byte of color is unknown.

    Raises:
        DataError: numbers without a known range.
    """
    rawmode = str(getattr(image, "tile", ""))
    image.load()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return scale(np.asarray(image), pixel_range or (0, 65535), GRAY_16)
    if image.mode == "I":
        return scale(np.asarray(image), pixel_range, INTEGER)
    if image.mode == "F":
        return _scale_floats(np.asarray(image), pixel_range)
    is_gray = image.mode == "L" or "LA;16" in rawmode
    note = GRAY_16 if is_gray else COLOR_16
    if pixel_range is None or image.mode not in ("RGB", "RGBA"):
        return EightBits(image, None, note)  # Pillow has kept the high byte
    if is_gray:  # its two numbers of 16 bits are four of 8
        planes = _reload(data, lambda rawmode: "RGBA") if data else np.asarray(image)
        numbers = planes[..., :1].astype(np.uint16) << 8 | planes[..., 1:2]
        alpha = planes[..., 2:3] if data else planes[..., 3:]
    else:
        high = np.asarray(image)
        low = _reload(data, _swapped) if data else high
        numbers = (high.astype(np.uint16) << 8 | low)[..., :3]
        alpha = high[..., 3:]
    pixels = _scaled(numbers, pixel_range)
    pixels = np.concatenate([pixels, alpha], -1) if image.mode == "RGBA" else pixels
    return EightBits(Image.fromarray(pixels), _extent(numbers), note)


def read_pnm(data: bytes, pixel_range: tuple[float, float] | None) -> EightBits | None:
    """Decode a binary PGM or PPM of more than 8 bits, for which Pillow takes a second a megapixel.

    Numbers are scaled to 16 bits by the file's own maximum. None for any other image.

    Raises:
        DataError: too few pixels.
    """
    header = _PNM_HEADER.match(data, 0, 4096)
    if header is None or not 255 < int(header[4]) < 65536:
        return None
    width, height, most = (int(header[i]) for i in (2, 3, 4))
    shape = (height, width, 3) if header[1] == b"6" else (height, width)
    if len(data) - header.end() < 2 * math.prod(shape):
        raise DataError("truncated")
    numbers = np.frombuffer(data, ">u2", math.prod(shape), header.end()).reshape(shape)
    numbers = np.rint(np.minimum(numbers, most) * (65535 / most)).astype(np.uint16)
    note = COLOR_16 if numbers.ndim == 3 else GRAY_16
    return scale(numbers, pixel_range or (0, 65535), note)


def scale(numbers: np.ndarray, pixel_range: tuple[float, float] | None, note: str) -> EightBits:
    """Scale numbers (H, W) or (H, W, 3) of any dtype; raise DataError without a range."""
    extent = _extent(numbers)
    if pixel_range is None:
        raise DataError(
            f"unsupported: pixels from {extent[0]:g} to {extent[1]:g} have no known range; give "
            f"`pixel_range`, or save it with 8 or 16 bits"
        )
    return EightBits(Image.fromarray(_scaled(numbers, pixel_range)), extent, note)


def _scale_floats(numbers: np.ndarray, pixel_range: tuple[float, float] | None) -> EightBits:
    numbers = np.nan_to_num(numbers, nan=0.0, posinf=np.inf, neginf=-np.inf)
    low, high = numbers.min(), numbers.max()
    if low >= 0 and high <= 255:
        return scale(numbers, pixel_range or ((0, 1) if high <= 1 else (0, 255)), FLOAT)
    if pixel_range is None:
        raise DataError(
            f"unsupported: float pixels from {low:g} to {high:g}; save it with 8 or 16 bits, or "
            f"with values from 0 to 1 or from 0 to 255, or give `pixel_range`"
        )
    return scale(numbers, pixel_range, FLOAT)


def _scaled(numbers: np.ndarray, pixel_range: tuple[float, float]) -> np.ndarray:
    low, high = pixel_range
    levels = (numbers.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(levels, 0, 255)).astype(np.uint8)


def _extent(numbers: np.ndarray) -> tuple[float, float]:
    low, high = float(numbers.min()), float(numbers.max())
    sample = numbers.ravel()[:: max(1, numbers.size // 2**14)]
    inner = np.quantile(sample, [_OUTLIERS, 1 - _OUTLIERS]).tolist()
    if 0 < inner[1] - inner[0] < (high - low) / 4:
        low, high = inner
    values = np.unique(sample).astype(np.float64)
    if len(values) >= _MIN_VALUES:
        if values[1] - values[0] > _GAP * (values[-1] - values[1]):
            low = float(values[1])
        elif values[-1] - values[-2] > _GAP * (values[-2] - values[0]):
            high = float(values[-2])
    return low, high


def _swapped(rawmode: str) -> str:
    """Return the raw mode by which Pillow takes the low byte of 16 bits for the high one."""
    return rawmode[:-1] + _OTHER_BYTE[rawmode[-1]]


def _reload(data: bytes, change: Callable[[str], str]) -> np.ndarray:
    """Decode an image by another raw mode: of 16-bit color, Pillow keeps the high bytes only."""
    with Image.open(io.BytesIO(data)) as image:
        tiles = []
        for tile in image.tile:
            args = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
            tiles.append(type(tile)(*tile[:3], (change(args[0]), *args[1:])))
        image.tile = tiles
        return np.asarray(image)
