"""Draw the figures of a run: curves, reliability diagram, confusion matrix, rate range test.

Each function returns a `Drawing`, which the pages show as SVG and plots/ keeps as PNG. Line charts
and the reliability diagram are `WIDTH` CSS px wide at a scale of 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggjax.evaluation.calibration import Reliability
from vggjax.report.plot_style import LIGHT, Drawing, drawable, png, style
from vggjax.training.lr_finder import RateTest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 20, 12, 46
_AXES_PX = 242
_ROW = 18
"""Height of a row of text above the axes: title, legend or the labels of marks."""

MAX_MARKED = 60
"""A line of more points is drawn without markers."""

MAX_MARK_ROWS = 4
"""Labels of marks are stacked in up to this many rows, so that neighbors do not overlap."""

MAX_NUMBERED = 20
"""Up to this many classes a confusion matrix has readable numbers and names."""

FEW = 10
"""A bin of fewer predictions is drawn pale."""

LEAST_RATE = 1e-3
"""Learning rates are shown down to this share of their peak; a cosine ends at almost nothing."""

_STEEP = 200
"""A loss that falls by more than this factor is drawn on a log scale."""

Style = dict[str, Any]
Tooltips = dict[str, list[str]]
_STEPS = [1, 2, 5, 10]
_DASHED, _SHORT = (0, (4, 3)), (0, (3, 2))
_DASHES = ("-", (0, (7, 4)), (0, (2, 4)))


@dataclass(frozen=True)
class Line:
    """One curve: its name, its color (`c0` to `c5`), and its points (x, y) in order."""

    name: str
    color: str
    points: Sequence[tuple[float, float]]
    dash: int = 0


@dataclass(frozen=True)
class Mark:
    """A labeled vertical line: where a stage begins, or where training collapsed."""

    x: float
    text: str
    is_collapse: bool = False


_TITLES = {"loss": "Loss", "accuracy": "Accuracy", "f1": "Micro F1", "mAP": "mAP"}


def draw_curves(
    rows: Sequence[dict[str, Any]],
    *,
    marks: Sequence[Mark] = (),
    best_epoch: float | None = None,
) -> list[Drawing]:
    """Draw loss, accuracy or mAP and F1, and, where they were logged, learning rates by epoch.

    Args:
        rows: one for each epoch, with its metrics and learning_rate/<group>.
        marks: vertical lines in every chart.
        best_epoch: the epoch whose weights were kept; its validation point gets a ring.
    """
    drawings = []
    is_multilabel = any("val/mAP" in row for row in rows)
    for metric in ("loss", "mAP", "f1") if is_multilabel else ("loss", "accuracy"):
        lines = [
            Line("training", "c0", _points(rows, f"train/{metric}")),
            Line("validation", "c1", _points(rows, f"val/{metric}")),
        ]
        losses = [y for line in lines for _, y in line.points if y > 0 and math.isfinite(y)]
        log = metric == "loss" and bool(losses) and max(losses) > _STEEP * min(losses)
        drawings.append(
            line_chart(
                lines,
                title=f"{_TITLES[metric]}{' (log scale)' if log else ''}",
                percent=metric != "loss",
                log=log,
                marks=marks,
                best=next((point for point in lines[1].points if point[0] == best_epoch), None),
                legend=True,
            )
        )
    if rates := learning_rates(rows):
        title, peaks = "Learning rate", [max(y for _, y in line.points) for line in rates]
        floor = LEAST_RATE * min(peaks)
        drawings.append(
            line_chart(rates, title=title, log=True, floor=floor, marks=marks, legend=True)
        )
    return drawings


def learning_rates(rows: Sequence[dict[str, Any]]) -> list[Line]:
    """Return the logged learning rates; groups with the same rates throughout share one line."""
    prefix = "learning_rate/"
    keys = sorted({key for row in rows for key in row if key.startswith(prefix)}, reverse=True)
    groups: dict[tuple[Any, ...], list[str]] = {}
    for key in keys:
        groups.setdefault(tuple(row.get(key) for row in rows), []).append(key)
    return [
        Line(
            " and ".join(key.removeprefix(prefix) for key in group),
            f"c{2 + number % 4}",
            _points(rows, group[0]),
        )
        for number, group in enumerate(groups.values())
    ]


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str = "epoch",
    percent: bool = False,
    log: bool = False,
    marks: Sequence[Mark] = (),
    best: tuple[float, float] | None = None,
    legend: bool = False,
    floor: float | None = None,
) -> Drawing:
    """Draw curves on common axes.

    Args:
        lines: the curves; points that are not finite (or, with `log`, not above 0) are left out,
            and so is a curve without points.
        title: the heading, also the text alternative.
        x_label: the name of the x axis; epochs get whole numbers.
        percent: y is a share from 0 to 1, labeled in percent.
        log: the y axis is logarithmic.
        marks: vertical lines, each with a label above the axes.
        best: a point that gets a ring.
        legend: show the names of the lines.
        floor: where the y axis begins at the least; lower parts of the curves are cut off.
    """
    from matplotlib.ticker import MaxNLocator

    shown = [(line, points) for line in lines if (points := _finite(line.points, log))]
    mark_rows = min(len(marks), MAX_MARK_ROWS)
    entries = (len(shown) + (best is not None)) if legend else 0
    tooltips = {}
    with style():
        figure, axes = _axes(title, above=_ROW * (max(1, math.ceil(entries / 3)) + mark_rows))
        for number, (line, points) in enumerate(shown):
            is_marked, gid = len(points) <= MAX_MARKED, f"line-{number}"
            look: Style = dict(c=LIGHT[line.color], ls=_DASHES[line.dash % 3])
            look |= dict(clip_on=floor is not None)
            look |= dict(label=drawable(line.name, width=30), gid=gid, ms=5.5)
            axes.plot(*zip(*points, strict=True), marker="o" if is_marked else "", **look)
            if is_marked:
                tooltips[gid] = [
                    f"{line.name}, {x_label} {x:g}: {_format(y, percent)}" for x, y in points
                ]
        _set_scales(axes, [x for _, points in shown for x, _ in points], percent=percent, log=log)
        if floor is not None and axes.get_ylim()[0] < floor:
            axes.set_ylim(bottom=floor)
        whole = dict(integer=x_label == "epoch", min_n_ticks=1)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS, **whole))
        axes.set_xlabel(x_label)
        if best is not None and _finite([best], log):
            ring: Style = dict(ms=15, mfc="none", mew=2, ls="none", clip_on=False, gid="best")
            axes.plot(*zip(best), marker="o", c=LIGHT["c1"], label="best (kept)", **ring)
            tooltips["best"] = [f"best, kept: {x_label} {best[0]:g}, {_format(best[1], percent)}"]
        for number, mark in enumerate(marks):
            _draw_mark(axes, mark, row=(mark_rows - 1 - number % MAX_MARK_ROWS))
        if entries:
            _set_legend(figure, axes)
    return Drawing(figure, title, tooltips)


def draw_reliability(
    measured: Reliability,
    *,
    other: Reliability | None = None,
    name: str = "after temperature scaling",
) -> Drawing:
    """Draw accuracy over confidence, with a histogram of the predictions below.

    `measured` is drawn as bars, and `other`, as the legend names it, as dots.
    """
    from matplotlib.ticker import PercentFormatter

    below = 46
    title = "Reliability diagram (accuracy by confidence)"
    with style():
        figure, axes = _axes(title, above=2 * _ROW, below=below)
        left, _, width, height = axes.get_position().bounds
        height *= (below - 8) / _AXES_PX
        histogram = figure.add_axes((left, 0, width, height), frameon=False, xticks=[], yticks=[])
        tooltips = _draw_bins(axes, histogram, measured)
        axes.plot([0, 1], [0, 1], c=LIGHT["muted"], lw=1, ls=_DASHED)
        if other is not None:
            tooltips |= _draw_dots(axes, other, name)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        axes.grid(axis="y")
        _set_legend(figure, axes, row=1)
    return Drawing(figure, title, tooltips)


def _draw_bins(axes: "Axes", histogram: "Axes", measured: Reliability) -> Tooltips:
    lefts, rights = (np.array(edges) for edges in zip(*measured.edges, strict=True))
    accuracies, counts = np.array(measured.accuracy), np.array(measured.counts)
    gaps = np.array(measured.confidence) - accuracies
    alphas = [0.4 if count < FEW else 1.0 for count in counts]
    place: Style = dict(width=0.94 * (rights - lefts), align="edge")
    axes.bar(0, 0, 0, color=LIGHT["c0"], label="accuracy")  # for the legend, where nothing is pale
    axes.bar(0, 0, 0, fill=False, ec=LIGHT["c1"], ls=_SHORT, label="gap to the confidence")
    axes.bar(lefts, accuracies, color=[(LIGHT["c0"], alpha) for alpha in alphas], **place)
    edges = [(LIGHT["c1"], alpha) for alpha in alphas]
    axes.bar(lefts, gaps, bottom=accuracies, fill=False, ec=edges, ls=_SHORT, lw=1.3, **place)
    shown = np.maximum(counts, 0.02 * counts.max())
    histogram.bar(lefts, shown, color=[(LIGHT["c5"], alpha) for alpha in alphas], **place)
    histogram.set(xlim=(0, 1), ylim=(0, counts.max()))
    # An invisible column over each bin has the tooltip.
    columns = axes.bar(lefts, 1, alpha=0, **place)
    tooltips = {}
    for number, column in enumerate(columns):
        column.set_gid(f"bin-{number}")
        unit = "prediction" if counts[number] == 1 else "predictions"
        tooltips[f"bin-{number}"] = [
            f"confidence {lefts[number]:.0%} to {rights[number]:.0%}: {counts[number]:,} "
            f"{unit}, accuracy {accuracies[number]:.1%}, mean confidence "
            f"{measured.confidence[number]:.1%}"
        ]
    return tooltips


def _draw_dots(axes: "Axes", other: Reliability, name: str) -> Tooltips:
    tooltips = {}
    bins = zip(other.confidence, other.accuracy, other.counts, strict=True)
    for number, (confidence, accuracy, count) in enumerate(bins):
        look: Style = dict(c=LIGHT["c2"], mec=LIGHT["paper"], mew=1.2, zorder=3, clip_on=False)
        look |= dict(ms=5 + 8 * math.sqrt(count / sum(other.counts)), gid=f"dot-{number}")
        axes.plot([confidence], [accuracy], "o", label=None if number else name, **look)
        tooltips[f"dot-{number}"] = [
            f"{name}: confidence {confidence:.1%}, accuracy {accuracy:.1%} of {count:,}"
        ]
    return tooltips


def draw_confusion(
    confusion: Sequence[Sequence[int]] | np.ndarray, class_names: Sequence[str]
) -> Drawing:
    """Draw the confusion matrix: shares of each row as colors, counts as numbers.

    With more than `MAX_NUMBERED` classes there are no numbers and names, and the root of the share
    is the color, because each single confusion is then rare.
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgba
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    num_classes = len(class_names)
    numbered = num_classes <= MAX_NUMBERED
    with style():
        side = min(max(3.2, 0.62 * num_classes), 9.5) if numbered else 8.0
        figure = Figure(figsize=(side + 2.4, side + 1.5), layout="constrained")
        axes = figure.subplots()
        # A transparent color lies well on light and dark pages alike.
        full = LIGHT["full"] if numbered else "#2f86d6"
        ends = [to_rgba(full, alpha) for alpha in (0.0, 1.0)]
        colors = LinearSegmentedColormap.from_list("share", ends)
        norm = PowerNorm(1 if numbered else 0.5, vmin=0, vmax=1)
        image = axes.imshow(shares, cmap=colors, norm=norm, interpolation="none")
        bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.03)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set(visible=True, color=LIGHT["line"])
        if numbered:
            _number_cells(axes, counts, shares, class_names)
    return Drawing(figure, "Confusion matrix: rows are true classes, columns predicted classes")


def draw_rate_test(test: RateTest) -> bytes:
    """Return the plot of a learning rate range test as PNG: loss by rate, with a suggestion."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
        rates, losses = np.array(test.rates), np.array(test.losses)
        axes.plot(rates, losses, ".", ms=4, c=LIGHT["muted"], alpha=0.55, label="one step")
        axes.plot(rates, test.smoothed, c=LIGHT["c0"], label="smoothed")
        readings = [("steepest descent", test.steepest, "v"), ("lowest loss", test.least, "o")]
        for name, rate, marker in readings:
            if rate is not None:
                loss = np.interp(np.log(rate), np.log(rates), test.smoothed)
                look: Style = dict(ms=8, c=LIGHT["c1"], mec=LIGHT["paper"], label=name)
                axes.plot([rate], [loss], marker, **look)
        if test.suggestion is not None:
            axes.axvline(test.suggestion, c=LIGHT["c1"], lw=1.2, ls=_DASHED)
            axes.annotate(
                f"suggested: {test.suggestion:.1e}", (test.suggestion, 1), color=LIGHT["c1"],
                xycoords=axes.get_xaxis_transform(), xytext=(5, -4), textcoords="offset points",
                va="top",
            )  # fmt: skip
        # A loss that diverges is cut off: its height would flatten all the rest.
        start = float(np.median(losses[: max(5, len(losses) // 10)])) if len(losses) else 1.0
        low = min(test.smoothed, default=0.0)
        margin = 0.25 * max(start - low, 0.1 * start)
        axes.set(ylim=(low - margin, start + 3 * margin), xscale="log", xlabel="learning rate")
        axes.set_title(f"Loss of {drawable(test.stage, width=40)}", loc="left", fontweight="bold")
        axes.grid(axis="both")
        figure.legend(loc="outside lower center", ncols=5)
        return png(Drawing(figure, "Learning rate range test"))


def _points(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]


def _finite(points: Sequence[tuple[float, float]], log: bool) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x + y) and (y > 0 or not log)]


def _format(value: float, percent: bool) -> str:
    return f"{100 * value:.3g}%" if percent else f"{value:.3g}"


def _axes(title: str, *, above: int, below: int = 0) -> "tuple[Figure, Axes]":
    """Return a figure of `WIDTH` px with a heading, and axes of a fixed size in it."""
    from matplotlib.figure import Figure

    height = _TOP + _AXES_PX + _BOTTOM + above + below
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    figure.text(6 / WIDTH, 1 - 4 / height, title, va="top", fontweight="bold", fontsize=13.5)
    left, bottom = _LEFT / WIDTH, (_BOTTOM + below) / height
    width = (WIDTH - _LEFT - _RIGHT) / WIDTH
    return figure, figure.add_axes((left, bottom, width, _AXES_PX / height))


def _set_scales(axes: "Axes", xs: Sequence[float], *, percent: bool, log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    if xs:
        flat = 0.5 * (min(xs) == max(xs))
        axes.set_xlim(min(xs) - flat, max(xs) + flat)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
        if not percent:
            axes.update_datalim([(0, 0)], updatex=False)
        axes.autoscale_view(scalex=False)
        low, high = axes.get_ylim()
        axes.set_ylim(*((max(0.0, low), min(1.0, high)) if percent else (low, high)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _format(y, percent)))
    axes.grid(axis="y")


def _draw_mark(axes: "Axes", mark: Mark, *, row: int) -> None:
    """Draw a vertical line up to its label, which stands `row` rows above the axes."""
    color = LIGHT["wrong"] if mark.is_collapse else LIGHT["muted"]
    top = 1 + (15 + _ROW * row) / _AXES_PX
    axes.axvline(mark.x, 0, top, c=color, lw=1.2, ls=_DASHED, clip_on=False)
    low, high = axes.get_xlim()
    left = mark.x < low + 0.6 * (high - low)
    axes.annotate(
        drawable(mark.text, width=34), (mark.x, 1), xycoords=axes.get_xaxis_transform(),
        xytext=(5 if left else -5, 6 + _ROW * row), textcoords="offset points", fontsize=12,
        color=color, ha="left" if left else "right",
        fontweight="bold" if mark.is_collapse else "normal",
        bbox=dict(fc=LIGHT["paper"], ec="none", pad=1),
    )  # fmt: skip


def _set_legend(figure: "Figure", axes: "Axes", *, row: int = 0) -> None:
    top = 1 - _ROW * row / (72 * figure.get_figheight())
    figure.legend(
        *axes.get_legend_handles_labels(), loc="upper right", bbox_to_anchor=(1, top), ncols=3,
        borderpad=0.2, borderaxespad=0.1, columnspacing=1.2, handlelength=1.4, fontsize=12.5,
    )  # fmt: skip


def _number_cells(
    axes: "Axes", counts: np.ndarray, shares: np.ndarray, class_names: Sequence[str]
) -> None:
    """Write the counts into the cells, and the names beside them."""
    num_classes = len(class_names)
    labels = [drawable(name, i) for i, name in enumerate(class_names)]
    cell_px = 72 * axes.get_window_extent().width / axes.figure.dpi / num_classes
    flat = 8 * max(map(len, labels)) <= cell_px
    turn: Style = {} if flat else dict(rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xticks(range(num_classes), labels, **turn)
    axes.set_yticks(range(num_classes), labels)
    size = 12 if num_classes <= 8 else 10 if num_classes <= 14 else 8
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = LIGHT["on-full" if shares[row, column] > 0.5 else "ink"]
            look: Style = dict(ha="center", va="center", fontsize=size, color=color)
            axes.text(column, row, f"{count}", **look)
    axes.set_xticks(np.arange(num_classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(num_classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", lw=1)
    axes.tick_params(which="minor", length=0)
