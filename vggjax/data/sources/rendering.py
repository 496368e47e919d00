"""Decode the images of a dataset as its options say, and find the range of 16-bit pixels.

Scanners that save 16 bits and use 12 of them, or a window, leave 17 of 256 gray levels when all 16
bits are scaled to 8. Such a set is scaled by its own range, which the model then keeps. The range
is that of up to `MAX_IMAGES` training images, spread evenly, without a few outliers.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vggjax.data.images.decode import BLANKS, DecodedImage, Rendering
from vggjax.data.images.depth import FLOAT
from vggjax.data.images.formats import may_be_deep
from vggjax.data.sources.options import DatasetOptions
from vggjax.data.sources.source import Source
from vggjax.errors import DataError

MAX_IMAGES = 1000
_FIRST_LOOK = 20
"""Images that are decoded to see whether any has more than 8 bits."""

MIN_SHARE = 0.1
"""Of the pixel range: an image that uses less shows a tenth of the gray levels."""

MIN_LEVELS = 200
"""Of 256: a set that uses as many is scaled by its full range."""


def render_source(
    source: Source, options: DatasetOptions, *, num_threads: int | None = None
) -> tuple[Source, Rendering]:
    """Return the dataset decoded as the options say, and the rendering with its range found.

    If a range is found, one of the source's notes says so.
    """
    low_high = tuple(options.pixel_range)
    rendering = Rendering(options.background, (low_high[0], low_high[1]) if low_high else None)
    if low_high or source.read_as is None:
        return source.rendered(rendering), rendering
    found = _find_extent(source, num_threads or os.cpu_count() or 1)
    pixel_range, note = _choose_range(*found) if found else (None, "")
    rendering = rendering._replace(pixel_range=pixel_range)
    return source.rendered(rendering, *filter(None, [note])), rendering


def doubt_of(image: DecodedImage, rendering: Rendering) -> str:
    """Return why a decoded image may show nothing by this rendering; empty without a doubt."""
    for note in set(BLANKS).intersection(image.notes):
        return note
    if image.extent is None or (rendering.pixel_range is None and FLOAT in image.notes):
        return ""
    black, white = rendering.pixel_range or (0, 65535)
    low, high = ((end - black) / (white - black) for end in image.extent)
    if high - low > 3 or low > 1 or high < 0:
        return f"far beyond the pixel range of the model, {black} to {white}"
    share = f"within {MIN_SHARE:.0%} of the pixel range, {black} to {white}"
    return share if high - low < MIN_SHARE else ""


def _choose_range(
    low: float, high: float, is_float: bool
) -> tuple[tuple[float, float] | None, str]:
    """Return the pixel range of a set with this extent, and the note that says so."""
    low, high = (int(end) if end == int(end) else end for end in (low, high))
    if is_float and 0 <= low and high <= 255:
        most = 1 if high <= 1 else 255
        note = (
            f"Float pixels from {low:.4g} to {high:.4g} are taken for 0 to {most}; `pixel_range` "
            f"gives another range."
        )
        return (0, most), note
    scaled = "they are scaled by that range; `pixel_range` gives another"
    if low < 0 or high > 65535:
        return (low, high), f"Pixels from {low:,} to {high:,}: {scaled}."
    levels = round(high / 257) - round(low / 257) + 1
    if levels >= MIN_LEVELS or low == high:
        return None, ""
    text = f"The 16-bit pixels use {levels} of 256 levels: {low} to {high} of 65535; {scaled}."
    return (low, high), text


def _find_extent(source: Source, num_threads: int) -> tuple[float, float, bool] | None:
    """Return the lowest and highest number of images of more than 8 bits, and if any are floats.

    None if there are no such images.
    """
    train = (source.splits or {}).get("train", np.arange(len(source)))
    indices = [i for i in _spread(train, MAX_IMAGES) if may_be_deep(source.path(i))]
    # With any range, an image of more than 8 bits is decoded and tells its extent.
    probe = source.rendered(Rendering(pixel_range=(0, 65535)))

    def look(i: int) -> DecodedImage | None:
        try:
            image = probe.read(i)
        except DataError:
            return None
        return image._replace(pixels=image.pixels[:0]) if image.extent else None

    images: list[DecodedImage | None] = []
    with ThreadPoolExecutor(num_threads, "vggjax-range") as threads:
        if any(threads.map(look, _spread(indices, _FIRST_LOOK))):
            images = list(threads.map(look, indices))
    deep = [image for image in images if image is not None]
    ends = [end for image in deep for end in image.extent or ()]
    return (min(ends), max(ends), any(FLOAT in image.notes for image in deep)) if ends else None


def _spread(indices: "np.ndarray | list[int]", count: int) -> list[int]:
    """Return at most `count` of the indices, spread evenly."""
    chosen = np.unique(np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int))
    return [int(indices[i]) for i in chosen]
