"""What the drawn images of a run share: paper and ink, the font, and names that it can draw.

matplotlib is imported when an image is drawn, and pyplot's global state stays as it was. Names are
drawn as they are written, never as formulae, and a name whose letters the font lacks is drawn as
its class number: a box would tell less.
"""

import functools
import io
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from vggjax.errors import printable

FONT = "DejaVu Sans"
"""matplotlib brings it along, so that it is the same everywhere."""


@dataclass(frozen=True)
class Theme:
    """The colors of an image."""

    paper: str
    ink: str
    muted: str
    grid: str
    train: str
    val: str
    full: str  # the color of a cell that holds all of its row


LIGHT = Theme("#ffffff", "#1d2530", "#66717f", "#e3e7ec", "#2a6fb5", "#d9640b", "#0b4f8f")
DARK = Theme("#171c23", "#e6eaef", "#98a3b0", "#2e3742", "#6db1f2", "#ff9d52", "#7cc0ff")


def drawable(name: str, index: int | None = None, *, width: int = 22) -> str:
    """Gives the name as the font can draw it: clipped, or `class 7` where it lacks the letters."""
    name = _clip(printable(name), width)
    if all(ord(letter) in _letters() for letter in name):
        return name
    if index is not None:
        return f"class {index}"
    return "".join(letter if ord(letter) in _letters() else "?" for letter in name)


@functools.cache
def _letters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(FONT)).get_charmap())


def _clip(text: str, width: int) -> str:
    # From the middle, for numbered names differ at their ends.
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[: width - half - 1]}…{text[-half:]}"


def style(theme: Theme) -> AbstractContextManager[None]:
    """Sets matplotlib's settings while an image is drawn."""
    import matplotlib

    return matplotlib.rc_context(
        {
            "font.family": [FONT],
            "font.size": 10,
            "text.usetex": False,
            "text.color": theme.ink,
            "axes.facecolor": theme.paper,
            "axes.edgecolor": theme.grid,
            "axes.labelcolor": theme.muted,
            "axes.titlecolor": theme.ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "figure.facecolor": theme.paper,
            "figure.dpi": 132,
            "grid.color": theme.grid,
            "lines.linewidth": 2,
            "xtick.color": theme.muted,
            "ytick.color": theme.muted,
            "xtick.labelcolor": theme.ink,
            "ytick.labelcolor": theme.ink,
        }
    )


def png(figure: Any) -> bytes:
    """Gives the drawn image as a PNG file's bytes."""
    file = io.BytesIO()
    small = {"compress_level": 4}  # the default takes three times as long for a tenth less
    figure.savefig(file, format="png", facecolor=figure.get_facecolor(), pil_kwargs=small)
    return file.getvalue()
