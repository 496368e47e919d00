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

WIDTH, HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 46
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

_STEEP = 200
"""A loss that falls by more than this factor is drawn on a log scale."""

_SCALED = "after temperature scaling"
Style = dict[str, Any]
_DASHED = (0, (4, 3))
_DASHES = ("-", (0, (7, 4)), (0, (2, 4)))
_NUM_COLORS = 6


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


def draw_curves(
    rows: Sequence[dict[str, Any]],
    *,
    marks: Sequence[Mark] = (),
    best_epoch: float | None = None,
) -> list[Drawing]:
    """Draw loss, accuracy and, where they were logged, learning rates by epoch.

    Args:
        rows: one for each epoch, with epoch, train/loss, val/loss, train/accuracy, val/accuracy and
            learning_rate/<group> where known.
        marks: vertical lines in every chart.
        best_epoch: the epoch whose weights were kept; its validation point gets a ring.
    """
    drawings = []
    for metric in ("loss", "accuracy"):
        lines = [
            Line("training", "c0", _points(rows, f"train/{metric}")),
            Line("validation", "c1", _points(rows, f"val/{metric}")),
        ]
        losses = [y for line in lines for _, y in line.points if y > 0 and math.isfinite(y)]
        log = metric == "loss" and bool(losses) and max(losses) > _STEEP * min(losses)
        drawings.append(
            line_chart(
                lines,
                title=f"{metric.capitalize()}{' (log scale)' if log else ''}",
                percent=metric == "accuracy",
                log=log,
                marks=marks,
                best=next((point for point in lines[1].points if point[0] == best_epoch), None),
                legend=True,
            )
        )
    rates = learning_rates(rows)
    if any(line.points for line in rates):
        chart = line_chart(rates, title="Learning rate", log=True, marks=marks, legend=True)
        drawings.append(chart)
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
    """
    shown = [(line, points) for line in lines if (points := _finite(line.points, log))]
    mark_rows = min(len(marks), MAX_MARK_ROWS)
    legend_columns = 3
    entries = (len(shown) + (best is not None)) if legend else 0
    legend_rows = max(1, math.ceil(entries / legend_columns))
    with style():
        figure, axes, height = _axes(above=_ROW * (legend_rows + mark_rows))
        tooltips = {}
        for number, (line, points) in enumerate(shown):
            marker = "o" if len(points) <= MAX_MARKED else None
            look: Style = dict(color=LIGHT[line.color], ls=_DASHES[line.dash % 3], clip_on=False)
            gid = f"line-{number}"
            name = drawable(line.name, width=30)
            axes.plot(
                *zip(*points, strict=True), marker=marker, ms=5.5, label=name, gid=gid, **look
            )
            if marker:
                tooltips[gid] = [
                    f"{line.name}, {x_label} {x:g}: {_format(y, percent)}" for x, y in points
                ]
        _set_scales(axes, [points for _, points in shown], x_label, percent=percent, log=log)
        if best is not None and _finite([best], log):
            ring: Style = dict(ms=15, mfc="none", mew=2, ls="none", clip_on=False, gid="best")
            axes.plot(*zip(best), marker="o", c=LIGHT["c1"], label="best (kept)", **ring)
            tooltips["best"] = [f"best, kept: {x_label} {best[0]:g}, {_format(best[1], percent)}"]
        for number, mark in enumerate(marks):
            _draw_mark(axes, mark, row=(mark_rows - 1 - number % MAX_MARK_ROWS))
        axes.set_xlabel(x_label)
        _set_heading(figure, title, height)
        if entries:
            _set_legend(figure, axes, columns=legend_columns)
    return Drawing(figure, title, tooltips)


def run_line(number: int, name: str, points: Sequence[tuple[float, float]]) -> Line:
    """Return the line of the `number`-th of several runs, in a color and dash of its own."""
    return Line(name, f"c{number % _NUM_COLORS}", points, dash=number // _NUM_COLORS)


def draw_reliability(measured: Reliability, *, scaled: Reliability | None = None) -> Drawing:
    """Draw accuracy over confidence, with a histogram of the predictions below.

    Args:
        measured: the bars, with the gap between accuracy and confidence.
        scaled: the same after temperature scaling, as dots.
    """
    from matplotlib.ticker import PercentFormatter

    below = 46
    tooltips = {}
    with style():
        figure, axes, height = _axes(above=2 * _ROW, below=below)
        histogram = figure.add_axes(
            (_LEFT / WIDTH, 0, (WIDTH - _LEFT - _RIGHT) / WIDTH, (below - 8) / height)
        )
        histogram.set(xlim=(0, 1), ylim=(0, max(measured.counts)))
        histogram.set_axis_off()
        bins = zip(
            measured.edges, measured.confidence, measured.accuracy, measured.counts, strict=True
        )
        gap: Style = dict(fill=False, ec=LIGHT["c1"], ls=(0, (3, 2)), lw=1.3, align="edge")
        axes.bar(0, 0, 0, color=LIGHT["c0"], label="accuracy")  # for the legend, never pale
        axes.bar(0, 0, 0, label="gap to the confidence", **gap)
        for number, ((low, high), confidence, accuracy, count) in enumerate(bins):
            x, width, alpha = low + 0.002, high - low - 0.004, 0.4 if count < FEW else 1.0
            bar: Style = dict(align="edge", alpha=alpha)
            axes.bar(x, accuracy, width, color=LIGHT["c0"], **bar)
            axes.bar(x, confidence - accuracy, width, accuracy, alpha=alpha, **gap)
            shown_count = max(count, 0.02 * max(measured.counts))
            histogram.bar(x, shown_count, width, color=LIGHT["c5"], **bar)
            # An invisible column over the whole bin carries the text that a pointer shows.
            gid = f"bin-{number}"
            axes.bar(x, 1, width, color=LIGHT["paper"], alpha=0, align="edge")[0].set_gid(gid)
            tooltips[gid] = [
                f"confidence {low:.0%} to {high:.0%}: {count:,} predictions, accuracy "
                f"{accuracy:.1%}, mean confidence {confidence:.1%}"
            ]
        axes.plot([0, 1], [0, 1], c=LIGHT["muted"], lw=1, ls=_DASHED)
        if scaled is not None:
            total = sum(scaled.counts)
            for number, (confidence, accuracy, count) in enumerate(
                zip(scaled.confidence, scaled.accuracy, scaled.counts, strict=True)
            ):
                gid = f"scaled-{number}"
                look: Style = dict(ms=5 + 8 * math.sqrt(count / total), mec=LIGHT["paper"], mew=1.2)
                axes.plot(
                    [confidence], [accuracy], "o", c=LIGHT["c2"], gid=gid, clip_on=False,
                    label=None if number else _SCALED, **look,
                )  # fmt: skip
                tooltips[gid] = [
                    f"{_SCALED}: confidence {confidence:.1%}, accuracy {accuracy:.1%} of {count:,}"
                ]
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        axes.grid(axis="y")
        _set_heading(figure, "Reliability diagram (accuracy by confidence)", height)
        _set_legend(figure, axes, columns=3, row=1)
    label = "Reliability diagram: accuracy by confidence"
    return Drawing(figure, label, tooltips)


def draw_confusion(
    confusion: Sequence[Sequence[int]] | np.ndarray, class_names: Sequence[str]
) -> Drawing:
    """Draw the confusion matrix: shares of each row as colors, counts as numbers.

    With more than `MAX_NUMBERED` classes there are no numbers and names, and the root of the share
    is the color, because each single confusion is then rare.
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
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
        colors = LinearSegmentedColormap.from_list("share", [(full, 0.0), (full, 1.0)])
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


def _axes(*, above: int, below: int = 0) -> "tuple[Figure, Axes, int]":
    """Return a figure of `WIDTH` px with axes of a fixed size, and the figure's height in px."""
    from matplotlib.figure import Figure

    height = HEIGHT + above + below
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    bottom = (_BOTTOM + below) / height
    size = (WIDTH - _LEFT - _RIGHT) / WIDTH, (HEIGHT - _TOP - _BOTTOM) / height
    return figure, figure.add_axes((_LEFT / WIDTH, bottom, *size)), height


def _set_scales(
    axes: "Axes",
    lines: Sequence[Sequence[tuple[float, float]]],
    x_label: str,
    *,
    percent: bool,
    log: bool,
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    xs = [x for points in lines for x, _ in points] or [0.0, 1.0]
    ys = [y for points in lines for _, y in points] or [0.0, 1.0]
    flat_x, flat_y = max(xs) == min(xs), max(ys) - min(ys) < 1e-12
    axes.set_xlim(min(xs) - 0.5 * flat_x, max(xs) + 0.5 * flat_x)
    if x_label == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if log:
        power = math.floor(math.log10(min(ys)))
        axes.set_yscale("log")
        axes.set_ylim(10.0**power, 10.0 ** max(math.ceil(math.log10(max(ys))), power + 1))
        axes.yaxis.set_major_locator(LogLocator(numticks=7))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        low = min(ys) if percent else min(0.0, *ys)
        high = max(ys) + 0.05 * flat_y
        locator = MaxNLocator(6, steps=[1, 2, 5, 10])
        ticks = locator.tick_values(low - 0.05 * flat_y, high)
        low, high = ticks[0], ticks[-1]
        axes.set_ylim(*((max(0.0, low), min(1.0, high)) if percent else (low, high)))
        axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _format(y, percent)))
    axes.grid(axis="y")


def _draw_mark(axes: "Axes", mark: Mark, *, row: int) -> None:
    """Draw a vertical line up to its label, which stands `row` rows above the axes."""
    color = LIGHT["wrong"] if mark.is_collapse else LIGHT["muted"]
    axes_px = HEIGHT - _TOP - _BOTTOM
    top = 1 + (6 + _ROW * row + 9) / axes_px
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


def _set_heading(figure: "Figure", title: str, height: int) -> None:
    figure.text(6 / WIDTH, 1 - 4 / height, title, va="top", fontweight="bold", fontsize=13.5)


def _set_legend(figure: "Figure", axes: "Axes", *, columns: int, row: int = 0) -> None:
    entries = zip(*axes.get_legend_handles_labels(), strict=True)
    handles, labels = zip(*sorted(entries, key=lambda entry: entry[1] == _SCALED), strict=True)
    top = 1 - _ROW * row / (72 * figure.get_figheight())
    figure.legend(
        handles, labels, loc="upper right", bbox_to_anchor=(1, top), ncols=columns,
        borderpad=0.2, borderaxespad=0.1, columnspacing=1.2, handlelength=1.4, fontsize=12.5,
    )  # fmt: skip


def _number_cells(
    axes: "Axes", counts: np.ndarray, shares: np.ndarray, class_names: Sequence[str]
) -> None:
    """Write the counts into the cells, and the names beside them."""
    num_classes = len(class_names)
    labels = [drawable(name, i) for i, name in enumerate(class_names)]
    flat = max(map(len, labels)) * num_classes <= 60
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
