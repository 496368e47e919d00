"""Lays photographs out on one sheet with a few words below each, as PNG bytes.

In: rows of cells, each an image, uint8 RGB, or None where it cannot be read, and its lines. Out: a
PNG on white paper. Names are drawn by the one font that is everywhere (paper.py).
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vggjax.report.plot_style import FONT, LIGHT, drawable

_CELL_PX, _GAP_PX, _MARGIN_PX, _LINE_PX = 200, 18, 22, 19
_COLORS = {"wrong": LIGHT.val, "muted": LIGHT.muted, "plain": LIGHT.ink}


@dataclass(frozen=True)
class Cell:
    """One image of a sheet."""

    image: np.ndarray | None
    lines: Sequence[tuple[str, str]] = ()
    """(text, look): `wrong`, `muted` or `plain`; shortened where it is too long."""


def draw_image_grid(rows: Sequence[Sequence[Cell]]) -> bytes:
    """Draws the rows one below the other."""
    from matplotlib.font_manager import FontProperties, findfont
    from PIL import Image, ImageDraw, ImageFont

    fonts = {
        look: ImageFont.truetype(
            findfont(FontProperties(family=FONT, weight="bold" if look == "wrong" else "normal")),
            13,
        )
        for look in _COLORS
    }
    step = _CELL_PX + _GAP_PX
    heights = [step + _LINE_PX * max((len(cell.lines) for cell in row), default=0) for row in rows]
    width = 2 * _MARGIN_PX + step * max(map(len, rows), default=1) - _GAP_PX
    sheet = Image.new("RGB", (width, 2 * _MARGIN_PX + sum(heights) - _GAP_PX), LIGHT.paper)
    pen = ImageDraw.Draw(sheet)
    top = _MARGIN_PX
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            left = _MARGIN_PX + column * step
            if cell.image is None:
                place = left + _CELL_PX / 2, top + _CELL_PX / 2
                text = "image not\nreadable now"
                pen.text(place, text, LIGHT.muted, fonts["muted"], anchor="mm", align="center")
            else:
                image = _fitted(cell.image)
                middle = (_CELL_PX - image.width) // 2, (_CELL_PX - image.height) // 2
                sheet.paste(image, (left + middle[0], top + middle[1]))
            for number, (text, look) in enumerate(cell.lines):
                place = left, top + _CELL_PX + 5 + _LINE_PX * number
                pen.text(place, drawable(text, width=26), _COLORS[look], fonts[look])
        top += height
    file = io.BytesIO()
    sheet.save(file, "PNG", compress_level=4)
    return file.getvalue()


def _fitted(pixels: np.ndarray):
    """Makes an image as large as its cell; a tiny one shows its pixels, sharp."""
    from PIL import Image

    image = Image.fromarray(pixels)
    times = _CELL_PX / max(image.size)
    size = max(1, round(image.width * times)), max(1, round(image.height * times))
    return image.resize(size, Image.Resampling.NEAREST if times > 3 else Image.Resampling.BICUBIC)
