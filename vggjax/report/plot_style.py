"""Colors, font and output of the report's figures.

Every figure is a `Drawing`: made once with matplotlib's object API (pyplot's global state is never
touched), then saved as SVG for a page and as PNG, on white, for plots/. The SVG keeps text as text
and takes its colors from the page's CSS variables, so it follows light mode, dark mode and print.
matplotlib is imported when a figure is drawn.
"""

import functools
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from vggjax.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image as PilImage

FONT = "DejaVu Sans"
"""Installed together with matplotlib, so figures look the same everywhere."""

DPI = 132
"""Resolution of a PNG, in pixels for each 72 CSS px of the page."""

MARGIN_PX = 24
"""Margin around each figure of a PNG, in its pixels."""

_COLORS = {
    "page": ("#f5f6f8", "#0f1318"),
    "paper": ("#ffffff", "#171c23"),
    "ink": ("#1d2530", "#e6eaef"),
    "muted": ("#5d6876", "#98a3b0"),
    "line": ("#e3e7ec", "#2e3742"),
    "c0": ("#2a6fb5", "#6db1f2"),
    "c1": ("#c8560a", "#ff9d52"),
    "c2": ("#2b8a4b", "#74cc88"),
    "c3": ("#8a4fc0", "#c39bf0"),
    "c4": ("#b8305a", "#ff86a8"),
    "c5": ("#6b7280", "#a8b2bd"),
    "accent": ("#2a6fb5", "#6db1f2"),
    "full": ("#0b4f8f", "#7cc0ff"),
    "on-full": ("#ffffff", "#10151b"),
    "wrong": ("#b8510a", "#ff9d52"),
    "good": ("#2b7a3d", "#74cc88"),
}
LIGHT = {name: light for name, (light, _) in _COLORS.items()}
DARK = {name: dark for name, (_, dark) in _COLORS.items()}
"""Colors of the pages, by the name of their CSS variable; figures are drawn in `LIGHT`."""


def drawable(name: str, index: int | None = None, *, width: int = 22) -> str:
    """Return `name` in letters that `FONT` has, shortened in the middle to `width`.

    A name with other letters becomes `class 7` where `index` is given; else they become `?`.
    """
    name = shorten(printable(name), width)
    if all(ord(letter) in _letters() for letter in name):
        return name
    if index is not None:
        return f"class {index}"
    return "".join(letter if ord(letter) in _letters() else "?" for letter in name)


def shorten(text: str, width: int) -> str:
    """Shorten a text in the middle, because numbered names differ at their ends."""
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[: width - half - 1]}…{text[-half:]}"


@functools.cache
def _letters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(FONT)).get_charmap())


def style() -> AbstractContextManager[None]:
    """Set matplotlib's settings for the duration of a `with` block."""
    import matplotlib

    settings: Any = {
        "font.family": [FONT],
        "font.size": 13,
        "text.usetex": False,
        "text.parse_math": False,  # class names may hold dollar signs
        "text.color": LIGHT["ink"],
        "axes.autolimit_mode": "round_numbers",
        "axes.facecolor": LIGHT["paper"],
        "axes.edgecolor": LIGHT["muted"],
        "axes.labelcolor": LIGHT["muted"],
        "axes.titlecolor": LIGHT["ink"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.axisbelow": True,
        "axes.xmargin": 0,
        "axes.ymargin": 0,
        "figure.facecolor": LIGHT["paper"],
        "figure.dpi": DPI,
        "grid.color": LIGHT["line"],
        "legend.frameon": False,
        "legend.labelcolor": LIGHT["muted"],
        "lines.linewidth": 2.2,
        "svg.fonttype": "none",
        "xtick.color": LIGHT["muted"],
        "ytick.color": LIGHT["muted"],
        "ytick.major.pad": 9,
        "ytick.major.size": 0,
    }
    return matplotlib.rc_context(settings)


@dataclass(frozen=True)
class Drawing:
    """A finished figure."""

    figure: "Figure"
    label: str
    """Text alternative for readers who cannot see it."""
    tooltips: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """gid of an artist -> a text for each of its markers, or one for the whole artist."""

    def svg(self) -> str:
        """Return the figure as an SVG element for a page, without a style sheet of its own.

        Colors are CSS variables, and sizes are CSS px at a scale of 1.
        """
        import matplotlib

        file = io.BytesIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        # Each figure of a page salts the ids of its clip paths differently, to keep them apart.
        with style(), matplotlib.rc_context({"svg.hashsalt": self.label}):
            self.figure.savefig(file, format="svg", transparent=True, metadata=nothing)
        root = ElementTree.fromstring(file.getvalue())
        _clean(root)
        for gid, texts in self.tooltips.items():
            _add_tooltips(root.find(f".//g[@id='{gid}']"), texts)
        _remove_ids(root)
        for name in ("width", "height", "version"):
            root.attrib.pop(name, None)
        root.attrib |= {"class": "chart", "role": "img", "aria-label": self.label}
        return ElementTree.tostring(root, encoding="unicode")


def png(*drawings: Drawing) -> bytes:
    """Return drawings side by side as the bytes of a PNG file on white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    panels = []
    for drawing in drawings:
        canvas = FigureCanvasAgg(drawing.figure)
        with style():
            canvas.draw()
        panels.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    width = sum(panel.width + MARGIN_PX for panel in panels) + MARGIN_PX
    height = max(panel.height for panel in panels) + 2 * MARGIN_PX
    image, left = Image.new("RGB", (width, height), LIGHT["paper"]), MARGIN_PX
    for panel in panels:
        image.paste(panel, (left, MARGIN_PX))
        left += panel.width + MARGIN_PX
    return image_bytes(image)


def image_bytes(image: "PilImage", format: str = "PNG", *, quality: int = 92) -> bytes:
    """Return an image as the bytes of a PNG, JPEG or WebP file."""
    file = io.BytesIO()
    # PNG's default level, 6, is 3 times slower.
    image.save(file, format, quality=quality, compress_level=4)
    return file.getvalue()


_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_VARIABLES = {color: f"var(--{name})" for name, color in reversed(LIGHT.items())}
_HEX = re.compile("|".join(_VARIABLES))


def _clean(root: ElementTree.Element) -> None:
    """Reduce matplotlib's SVG to what a page needs: no namespaces, whitespace or global styles."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}style", "}metadata")):  # a style would apply to all the page
                parent.remove(child)
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
        node.tail = None
        if node.tag != "text":
            node.text = None
        for name, value in list(node.attrib.items()):
            del node.attrib[name]
            name = name.rpartition("}")[2]
            if name == "style":
                value = _HEX.sub(lambda match: _VARIABLES[match[0]], value)
            if not value.startswith("data:"):
                value = _NUMBER.sub(lambda match: f"{float(match[0]):.2f}", value)
            node.set(name, value)


def _add_tooltips(group: ElementTree.Element | None, texts: Sequence[str]) -> None:
    if group is None:  # all of it lies outside of the axes
        return
    markers = [(parent, node) for parent in group.iter() for node in parent if node.tag == "use"]
    if not markers:
        title = ElementTree.Element("title")
        title.text = texts[0]
        group.insert(0, title)
        return
    for (parent, node), text in zip(markers, texts, strict=True):
        wrapper = ElementTree.Element("g")
        ElementTree.SubElement(wrapper, "title").text = text
        wrapper.append(node)
        parent[list(parent).index(node)] = wrapper


def _remove_ids(root: ElementTree.Element) -> None:
    """Keep only the ids that a clip path, pattern or marker is used by."""
    values = [value for node in root.iter() for name, value in node.attrib.items() if name != "id"]
    used = set(re.findall(r"(?:url\(#|^#)([\w-]+)", "\n".join(values), re.MULTILINE))
    for node in root.iter():
        if node.get("id") not in used:
            node.attrib.pop("id", None)
