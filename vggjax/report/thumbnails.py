"""Gives a dataset's photographs as small JPEGs that a page holds in itself, each read once.

In: the source, or None where the dataset is gone. Out: pixels, uint8 RGB, and data URIs; None for
an image that cannot be read any more. Names are as `errors.shown` gives them, as in the tables.
"""

import base64
import io
from functools import cached_property

import numpy as np

from vggjax.data.sources.source import Source
from vggjax.errors import DataError, printable

THUMBNAIL_PX = 200
"""The longer side of a small image."""


class Thumbnails:
    """The photographs behind the rows of a run's tables."""

    def __init__(self, source: Source | None):
        self.source = source
        self._read: dict[int, np.ndarray | None] = {}

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return (
            {}
            if self.source is None
            else {printable(id): i for i, id in enumerate(self.source.ids)}
        )

    def pixels(self, index: int) -> np.ndarray | None:
        """Reads an image by its index into the source, made smaller where it is large."""
        if self.source is None:
            return None
        if index not in self._read:
            try:
                self._read[index] = small(self.source.read(index).pixels)
            except DataError:  # it was there when the run was evaluated; the page tells
                self._read[index] = None
        return self._read[index]

    def pixels_of(self, id: str) -> np.ndarray | None:
        """Reads an image by its name in the tables."""
        return self.pixels(self._numbers[id]) if id in self._numbers else None


def small(pixels: np.ndarray, *, side_px: int = THUMBNAIL_PX) -> np.ndarray:
    """Makes an image small; one much smaller than that shows its pixels, sharp."""
    from PIL import Image

    image = Image.fromarray(pixels)
    times = side_px // max(image.size)
    if times >= 2:
        size = image.width * times, image.height * times
        image = image.resize(size, Image.Resampling.NEAREST if times > 3 else None)
    image.thumbnail((side_px, side_px))
    return np.asarray(image)


def jpeg_uri(pixels: np.ndarray | None, *, quality: int = 82) -> str | None:
    """Gives an image as a data URI; None stays None."""
    from PIL import Image

    if pixels is None:
        return None
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return data_uri(file.getvalue(), kind="jpeg")


def data_uri(data: bytes, *, kind: str = "png") -> str:
    """Writes a file's bytes as an address that holds them."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
