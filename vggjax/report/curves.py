"""Draws a run's curves as PNG bytes: loss and accuracy by epoch, and the reliability diagram.

The page itself has the same as inline SVG (charts.py); these are for slides and papers, on white.
"""

from collections.abc import Sequence
from typing import Any

from vggjax.evaluation.calibration import Reliability
from vggjax.report.facts import stage_starts
from vggjax.report.plot_style import LIGHT, drawable, png, style


def draw_curves(
    rows: Sequence[dict[str, Any]],
    *,
    best_epoch: float | None = None,
    collapses: Sequence[float] = (),
) -> bytes:
    """Draws loss and accuracy per epoch, the best epoch marked and a line where a stage begins.

    Args:
        rows: one an epoch, with epoch, stage and train/loss, val/loss, train/accuracy, val/accuracy
            where known.
        best_epoch: the epoch whose weights were kept.
        collapses: the epochs in which the training was found to learn nothing.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    theme = LIGHT
    with style(theme):
        figure = Figure(figsize=(10, 3.9), layout="constrained")
        marks = [
            (epoch, f"{drawable(added, width=28)} unfrozen", theme.muted)
            for epoch, added in stage_starts(rows)
        ]
        marks += [(epoch, "collapse", theme.val) for epoch in collapses]
        for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for part, color in (("train", theme.train), ("val", theme.val)):
                key = f"{part}/{metric}"
                points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
                if not points:
                    continue
                label = "training" if part == "train" else "validation"
                marker = "o" if len(points) <= 40 else None
                axes.plot(*zip(*points, strict=True), marker=marker, ms=4, c=color, label=label)
                best = [value for epoch, value in points if epoch == best_epoch]
                if part == "val" and best:
                    ring = dict(marker="o", ms=11, mfc="none", mew=1.8, ls="none", c=color)
                    axes.plot([best_epoch], best, label="best, kept", **ring)
            for epoch, text, color in marks:
                axes.axvline(epoch, c=color, lw=1, ls=(0, (4, 3)))
                place = dict(xytext=(4, -4), textcoords="offset points", va="top", fontsize=8.5)
                where = axes.get_xaxis_transform()
                note = axes.annotate(text, (epoch, 1), xycoords=where, color=color, **place)
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
        return png(figure)


def draw_reliability(found: Reliability) -> bytes:
    """Draws the share that was right over how sure the model was, with the gap between them."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    theme = LIGHT
    with style(theme):
        figure = Figure(figsize=(4.6, 4.4), layout="constrained")
        axes = figure.subplots()
        left = [low for low, _ in found.edges]
        width = [0.94 * (high - low) for low, high in found.edges]
        bars = dict(width=width, align="edge")
        axes.bar(left, found.accuracy, color=theme.train, label="right", **bars)
        gaps = [s - r for s, r in zip(found.confidence, found.accuracy, strict=True)]
        look = dict(color="none", edgecolor=theme.val, hatch="////", linewidth=1)
        axes.bar(left, gaps, bottom=found.accuracy, label="gap to what was claimed", **look, **bars)
        axes.plot([0, 1], [0, 1], c=theme.muted, lw=1, ls=(0, (4, 3)))
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="how sure the model was")
        axes.set_title(f"right; ECE {found.ece:.1%}", loc="left", fontweight="bold")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        axes.legend(frameon=False, loc="upper left")
        return png(figure)
