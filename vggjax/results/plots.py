"""Draws the pictures of a run as PNG bytes: learning curves, confusion matrix, worst mistakes.

In: plain rows and arrays. Out: PNG, on white paper or, with `dark`, on the dark page's. matplotlib
is imported when a picture is drawn, and through `Figure` alone: pyplot's global state stays as it
was. Names are drawn as they are written, never as formulae, and a name whose letters the font lacks
is drawn as its class number: a box would tell less. Where files go is not decided here.
"""

import functools
import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from vggjax.errors import shown

MAX_NUMBERED = 20
"""Up to this many classes a confusion matrix has readable numbers and names."""

FONT = "DejaVu Sans"
"""matplotlib brings it along, so that it is the same everywhere."""


@dataclass(frozen=True)
class _Theme:
    paper: str
    ink: str
    muted: str
    grid: str
    train: str
    val: str
    full: str  # the colour of a cell that holds all of its row


_LIGHT = _Theme("#ffffff", "#1d2530", "#66717f", "#e3e7ec", "#2a6fb5", "#d9640b", "#0b4f8f")
_DARK = _Theme("#171c23", "#e6eaef", "#98a3b0", "#2e3742", "#6db1f2", "#ff9d52", "#7cc0ff")


def draw_curves(
    rows: Sequence[dict[str, Any]], *, best_epoch: float | None = None, dark: bool = False
) -> bytes:
    """Draws loss and accuracy per epoch, the best epoch marked and a line where a stage begins.

    Args:
        rows: one an epoch, with epoch, stage and train/loss, val/loss, train/accuracy, val/accuracy
            where known.
        best_epoch: the epoch whose weights were kept.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    theme = _DARK if dark else _LIGHT
    with _style(theme):
        figure = Figure(figsize=(10, 3.9), layout="constrained")
        stages = _stage_starts(rows)
        for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for part, colour in (("train", theme.train), ("val", theme.val)):
                key = f"{part}/{metric}"
                points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
                if not points:
                    continue
                label = "training" if part == "train" else "validation"
                marker = "o" if len(points) <= 40 else None
                axes.plot(*zip(*points, strict=True), marker=marker, ms=4, c=colour, label=label)
                best = [value for epoch, value in points if epoch == best_epoch]
                if part == "val" and best:
                    style = dict(marker="o", ms=11, mfc="none", mew=1.8, ls="none", c=colour)
                    axes.plot([best_epoch], best, label="best, kept", **style)
            for epoch, stage in stages:
                axes.axvline(epoch, c=theme.muted, lw=1, ls=(0, (4, 3)))
                text = f"{drawable(stage.removeprefix('head+'), width=28)} unfrozen"
                place = dict(xytext=(4, -4), textcoords="offset points", va="top", fontsize=8.5)
                where = axes.get_xaxis_transform()
                note = axes.annotate(text, (epoch, 1), xycoords=where, color=theme.muted, **place)
                note.set_parse_math(False)
            axes.set_title(metric, loc="left", fontweight="bold")
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.grid(axis="y")
            if metric == "accuracy":
                axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        names = figure.axes[1].get_legend_handles_labels()
        if names[0]:
            figure.legend(*names, loc="outside upper right", ncols=3, frameon=False)
        if len(rows) == 1:  # one point alone would get scales of invisible fractions
            for axes in figure.axes:
                axes.set_xlim(rows[0]["epoch"] - 1, rows[0]["epoch"] + 1)
                axes.set_ylim(0, max(1.0, 1.1 * axes.dataLim.y1))
        return _png(figure)


def draw_confusion(
    confusion: Sequence[Sequence[int]] | np.ndarray,
    class_names: Sequence[str],
    *,
    dark: bool = False,
) -> bytes:
    """Draws the confusion matrix: counts as numbers, each row's shares as colours."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    theme = _DARK if dark else _LIGHT
    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    num_classes = len(class_names)
    numbered = num_classes <= MAX_NUMBERED
    with _style(theme):
        side = min(max(3.2, 0.62 * num_classes), 9.5) if numbered else 9.0
        figure = Figure(figsize=(side + 2.4, side + 1.5), layout="constrained")
        axes = figure.subplots()
        colours = LinearSegmentedColormap.from_list("row share", [theme.paper, theme.full])
        # Among many classes each mistake is rare: the root makes the faint cells visible.
        norm = PowerNorm(1 if numbered else 0.5, vmin=0, vmax=1)
        image = axes.imshow(shares, cmap=colours, norm=norm, interpolation="nearest")
        bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.03)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)
        axes.set_xlabel("guess")
        axes.set_ylabel("truth")
        if numbered:
            labels = [drawable(name, i) for i, name in enumerate(class_names)]
            flat = max(map(len, labels)) * num_classes <= 60
            turn = {} if flat else dict(rotation=40, ha="right", rotation_mode="anchor")
            axes.set_xticks(range(num_classes), labels, parse_math=False, **turn)
            axes.set_yticks(range(num_classes), labels, parse_math=False)
            size = 11 if num_classes <= 8 else 9 if num_classes <= 14 else 7
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    strong = shares[row, column] > 0.5
                    colour = theme.paper if strong else theme.ink
                    text = dict(ha="center", va="center", fontsize=size, color=colour)
                    axes.text(column, row, f"{count}", **text)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set(visible=True, color=theme.grid)
        if numbered:
            axes.set_xticks(np.arange(num_classes + 1) - 0.5, minor=True)
            axes.set_yticks(np.arange(num_classes + 1) - 0.5, minor=True)
            axes.grid(which="minor", lw=1)
        axes.tick_params(which="minor", length=0)
        return _png(figure)


def draw_mistakes(
    mistakes: Sequence[tuple[np.ndarray | None, str, str, float]], *, dark: bool = False
) -> bytes:
    """Draws a gallery of (picture uint8 RGB or None, truth, guess, probability of the guess)."""
    from matplotlib.figure import Figure

    theme = _DARK if dark else _LIGHT
    columns = min(6, max(1, len(mistakes)))
    rows = max(1, -(-len(mistakes) // columns))
    with _style(theme):
        figure = Figure(figsize=(2.0 * columns, 2.55 * rows), layout="constrained")
        grid = np.ravel(figure.subplots(rows, columns))
        for axes in grid:
            axes.set_axis_off()
        for axes, (image, truth, guess, probability) in zip(grid, mistakes, strict=False):
            if image is None:
                centre = dict(ha="center", va="center", transform=axes.transAxes)
                axes.text(0.5, 0.5, "picture not\nreadable now", color=theme.muted, **centre)
                axes.set_aspect("equal")
            else:
                # A tiny picture shows its pixels; matplotlib would blur them.
                small = max(image.shape[:2]) < 64
                axes.imshow(image, interpolation="nearest" if small else "antialiased")
            lines = [
                (f"taken for {drawable(guess)}", theme.val, "bold"),
                (f"{probability:.1%} sure", theme.muted, "normal"),
                (f"is {drawable(truth)}", theme.ink, "normal"),
            ]
            for i, (text, colour, weight) in enumerate(lines):
                place = dict(xytext=(0, -3 - 12 * i), textcoords="offset points", ha="center")
                font = dict(va="top", fontsize=8.5, color=colour, weight=weight, parse_math=False)
                note = axes.annotate(text, (0.5, 0), xycoords="axes fraction", **place, **font)
                note.set_in_layout(i == len(lines) - 1)
        if not mistakes:
            grid[0].text(0.5, 0.5, "no mistakes", ha="center", va="center", color=theme.muted)
        return _png(figure)


def drawable(name: str, index: int | None = None, *, width: int = 22) -> str:
    """Gives the name as the font can draw it: clipped, or `class 7` where it lacks the letters."""
    name = _clip(shown(name), width)
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


def _stage_starts(rows: Sequence[dict[str, Any]]) -> list[tuple[float, str]]:
    starts, previous = [], rows[0].get("stage") if rows else None
    for before, row in zip(rows, rows[1:], strict=False):
        if row.get("stage") != previous:
            previous = row.get("stage")
            starts.append(((before["epoch"] + row["epoch"]) / 2, str(previous)))
    return starts


def _style(theme: _Theme) -> AbstractContextManager[None]:
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


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor=figure.get_facecolor(), bbox_inches="tight")
    return file.getvalue()
