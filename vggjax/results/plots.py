"""Draws the pictures of a run as PNG bytes: the confusion matrix and the worst mistakes.

In: plain rows and arrays. Out: PNG, on white paper or, with `dark`, on the dark page's. matplotlib
is imported when a picture is drawn, and through `Figure` alone. Where files go is not decided here.
"""

from collections.abc import Sequence

import numpy as np

from vggjax.results.paper import DARK, LIGHT, drawable, png, style

MAX_NUMBERED = 20
"""Up to this many classes a confusion matrix has readable numbers and names."""


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

    theme = DARK if dark else LIGHT
    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    num_classes = len(class_names)
    numbered = num_classes <= MAX_NUMBERED
    with style(theme):
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
        return png(figure)


def draw_mistakes(
    mistakes: Sequence[tuple[np.ndarray | None, str, str, float]], *, dark: bool = False
) -> bytes:
    """Draws a gallery of (picture uint8 RGB or None, truth, guess, probability of the guess)."""
    from matplotlib.figure import Figure

    theme = DARK if dark else LIGHT
    columns = min(6, max(1, len(mistakes)))
    rows = max(1, -(-len(mistakes) // columns))
    with style(theme):
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
        return png(figure)
