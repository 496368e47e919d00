"""Show photographs: small JPEGs inside a page, and grids of captioned images as PNG.

Images are uint8 RGB arrays (H, W, 3), or None where an image cannot be read any more.
"""

import base64
import textwrap
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from vggjax.data.sources.source import Source
from vggjax.errors import DataError, printable
from vggjax.report.plot_style import FONT, LIGHT, drawable, image_bytes

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage
    from PIL.ImageFont import FreeTypeFont

THUMBNAIL_PX = 200
"""Longer side of a thumbnail."""

CELL_PX, GAP_PX, MARGIN_PX, LINE_PX = 200, 14, 22, 19
_LOOKS = {"wrong": "wrong", "muted": "muted", "plain": "ink", "bold": "ink"}
"""Look of a caption's line -> its color; `wrong` and `bold` are bold."""


class Thumbnails:
    """Thumbnails of a dataset's images, each read once; all None without a source."""

    def __init__(self, source: Source | None):
        self.source = source
        self._images: dict[int, np.ndarray | None] = {}

    @cached_property
    def _index_of(self) -> dict[str, int]:
        ids = self.source.ids if self.source is not None else ()
        return {printable(id): i for i, id in enumerate(ids)}

    def image(self, index: int) -> np.ndarray | None:
        """Return the thumbnail of the image at `index` of the source."""
        if self.source is None:
            return None
        if index not in self._images:
            try:
                self._images[index] = thumbnail(self.source.read(index).pixels)
            except DataError:  # it could be read when the run was evaluated
                self._images[index] = None
        return self._images[index]

    def image_of(self, id: str) -> np.ndarray | None:
        """Return the thumbnail of the image with this printable id."""
        return self.image(self._index_of[id]) if id in self._index_of else None


def thumbnail(image: np.ndarray, *, side_px: int = THUMBNAIL_PX) -> np.ndarray:
    """Resize an image to fit into a square; much smaller ones are enlarged with sharp pixels."""
    from PIL import Image

    scale = side_px / max(image.shape[:2])
    if 1 <= scale < 2:
        return image
    scale = int(scale) if scale >= 2 else scale
    height, width = (max(4, round(scale * side)) for side in image.shape[:2])
    method = Image.Resampling.NEAREST if scale > 3 else Image.Resampling.BICUBIC
    # Reducing a large image by a whole factor first is fast, and good enough here.
    return np.asarray(Image.fromarray(image).resize((width, height), method, reducing_gap=2.0))


def round_robin(keys: Iterable[Hashable]) -> np.ndarray:
    """Return an order that takes one item of each key before a second of any, else as given."""
    counts: Counter[Hashable] = Counter()
    ranks = []
    for key in keys:
        ranks.append(counts[key])
        counts[key] += 1
    return np.argsort(ranks, kind="stable")


def jpeg_uri(image: np.ndarray) -> str:
    """Return an image as a data URI."""
    from PIL import Image

    data = image_bytes(Image.fromarray(image), "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class Cell:
    """An image of a grid with its caption."""

    image: np.ndarray | None
    lines: Sequence[tuple[str, str]] = ()
    """(text, look) with a look of `_LOOKS`; long texts are shortened."""


def image_grid(rows: Sequence[Sequence[Cell]], *, title: str = "") -> "PilImage":
    """Return a grid of images with their captions on white, below a title if there is one."""
    from PIL import Image, ImageDraw

    fonts = {look: _font(13, bold=look in ("wrong", "bold")) for look in _LOOKS}
    step = CELL_PX + GAP_PX
    heights = [step + LINE_PX * max((len(cell.lines) for cell in row), default=0) for row in rows]
    width = 2 * MARGIN_PX + step * max(map(len, rows), default=1) - GAP_PX
    title_lines = textwrap.wrap(printable(title), (width - 2 * MARGIN_PX) // 11)
    top = MARGIN_PX + 24 * len(title_lines) + (GAP_PX if title else 0)
    grid = Image.new("RGB", (width, top + sum(heights) - GAP_PX + MARGIN_PX), LIGHT["paper"])
    draw = ImageDraw.Draw(grid)
    text = drawable("\n".join(title_lines), width=len(title) + 1)
    draw.text((MARGIN_PX, MARGIN_PX), text, LIGHT["ink"], _font(17, bold=True), spacing=4)
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            left = MARGIN_PX + column * step
            image = _fit(cell.image)
            offset = (CELL_PX - image.width) // 2, (CELL_PX - image.height) // 2
            grid.paste(image, (left + offset[0], top + offset[1]))
            for number, (text, look) in enumerate(cell.lines):
                place = left, top + CELL_PX + 5 + LINE_PX * number
                draw.text(place, drawable(text, width=26), LIGHT[_LOOKS[look]], fonts[look])
        top += height
    return grid


def _font(size_px: int, *, bold: bool = False) -> "FreeTypeFont":
    from matplotlib.font_manager import FontProperties, findfont
    from PIL import ImageFont

    weight = "bold" if bold else "normal"
    return ImageFont.truetype(findfont(FontProperties(family=FONT, weight=weight)), size_px)


def _fit(pixels: np.ndarray | None) -> "PilImage":
    """Resize an image to the size of a cell, a tiny one with sharp pixels; None becomes a note."""
    from PIL import Image, ImageDraw

    if pixels is None:
        image = Image.new("RGB", (CELL_PX, CELL_PX), LIGHT["paper"])
        place, note = (CELL_PX / 2, CELL_PX / 2), "image not\nreadable now"
        ImageDraw.Draw(image).text(place, note, LIGHT["muted"], _font(13), anchor="mm")
        return image
    image = Image.fromarray(pixels)
    scale = CELL_PX / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST if scale > 3 else Image.Resampling.BICUBIC)
