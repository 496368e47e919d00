"""Draws the confusion matrix of a run as PNG bytes.

In: counts and names. Out: PNG, on white paper or, with `dark`, on the dark page's. matplotlib
is imported when an image is drawn, and through `Figure` alone. Where files go is not decided here.
"""

from collections.abc import Sequence

import numpy as np

from vggjax.report.plot_style import DARK, LIGHT, drawable, png, style

MAX_NUMBERED = 20
"""Up to this many classes a confusion matrix has readable numbers and names."""


def draw_confusion(
    confusion: Sequence[Sequence[int]] | np.ndarray,
    class_names: Sequence[str],
    *,
    dark: bool = False,
) -> bytes:
    """Draws the confusion matrix: counts as numbers, each row's shares as colors."""
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
        colors = LinearSegmentedColormap.from_list("row share", [theme.paper, theme.full])
        # Among many classes each mistake is rare: the root makes the faint cells visible.
        norm = PowerNorm(1 if numbered else 0.5, vmin=0, vmax=1)
        image = axes.imshow(shares, cmap=colors, norm=norm, interpolation="nearest")
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
                    color = theme.paper if strong else theme.ink
                    text = dict(ha="center", va="center", fontsize=size, color=color)
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
