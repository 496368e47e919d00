"""Draws the charts of a page as inline SVG: they follow its colors, light or dark, and its print.

In: numbers and names. Out: SVG text whose every word is escaped, with classes that
pages/style.css.j2 colors and, on each point, a title that a browser shows under the pointer. The
same curves as PNG files are drawn by curves.py. No file is touched here.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from vggjax.evaluation.calibration import Reliability

WIDTH, HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 40
_MAX_DOTS = 60
"""A line of more points is drawn without its dots."""

_MAX_ROWS = 4
"""Words of marks stand one above the other, in as many lines."""

FEW = 10
"""A bar of fewer guesses is drawn pale: it says little."""

_LETTER_PX = 6.6
"""About the width of a letter of the charts' text."""


@dataclass(frozen=True)
class Line:
    """A curve: its name, the class that colors it, and its points (x, y) in order."""

    name: str
    look: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Mark:
    """A place on the x axis that is told: where a stage begins, or where a run collapsed."""

    x: float
    text: str
    look: str = "stage"


def line_chart(
    lines: Iterable[Line],
    *,
    label: str,
    x_label: str = "epoch",
    share: bool = False,
    log: bool = False,
    marks: Sequence[Mark] = (),
    best: tuple[float, float] | None = None,
) -> str:
    """Draws curves over a common axis.

    Args:
        lines: the curves; points that are no finite numbers (or, with `log`, not above 0) are left
            out, and a curve without points is not drawn.
        label: what the chart shows, for those who cannot see it.
        x_label: the name of the x axis.
        share: y is a share from 0 to 1 and is told in percent.
        log: the y axis counts powers of ten.
        marks: vertical lines with a word each.
        best: the point that gets a ring.
    """
    drawn = [Line(li.name, li.look, kept) for li in lines if (kept := _finite(li.points, log))]
    xs = [x for line in drawn for x, _ in line.points] or [0.0, 1.0]
    ys = [y for line in drawn for _, y in line.points] or [0.0, 1.0]
    x_axis = _Axis(min(xs), max(xs), _LEFT, WIDTH - _RIGHT, whole=x_label == "epoch")
    low = min(ys) if log or share else min(0.0, *ys)
    y_axis = _Axis(low, max(ys), HEIGHT - _BOTTOM, _TOP, log=log, most=1.0 if share else None)
    tell = _percent if share else _number
    parts = [*_frame(x_axis, y_axis, tell, x_label)]
    lowest = min(len(marks), _MAX_ROWS) - 1
    for i, mark in enumerate(marks):  # their words stand above the frame, the first the highest
        parts += _mark(x_axis.at(mark.x), mark, lowest - i % _MAX_ROWS)
    for line in drawn:
        places = [(x_axis.at(x), y_axis.at(y)) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="{line.look}" points="{path}"/>')
        if len(places) <= _MAX_DOTS:
            for (x, y), (cx, cy) in zip(line.points, places, strict=True):
                said = escape(f"{line.name}, {x_label} {x:g}: {tell(y)}")
                dot = f'<circle class="{line.look}" cx="{cx:.1f}" cy="{cy:.1f}" r="3.2">'
                parts.append(f"{dot}<title>{said}</title></circle>")
    if best is not None and _finite([best], log):
        cx, cy = x_axis.at(best[0]), y_axis.at(best[1])
        said = escape(f"best, kept: {x_label} {best[0]:g}, {tell(best[1])}")
        ring = f'<circle class="best" cx="{cx:.1f}" cy="{cy:.1f}" r="8">'
        parts.append(f"{ring}<title>{said}</title></circle>")
    return _svg(parts, HEIGHT, label, above=15 * (lowest + 1))


def reliability_chart(found: Reliability, *, after: Reliability | None = None) -> str:
    """Draws the share that was right over how sure the model was, and how many guesses lie where.

    Args:
        found: the bars.
        after: the same at the fitted temperature, as dots.
    """
    histogram_px = 46
    bottom = HEIGHT - _BOTTOM
    x_axis = _Axis(0.0, 1.0, _LEFT, WIDTH - _RIGHT, most=1.0)
    y_axis = _Axis(0.0, 1.0, bottom, _TOP, most=1.0)
    parts = [*_frame(x_axis, y_axis, _percent, "how sure the model was", below=histogram_px)]
    total, most = sum(found.counts), max(found.counts)
    for (low, high), sure, right, count in zip(
        found.edges, found.confidence, found.accuracy, found.counts, strict=True
    ):
        x, width = x_axis.at(low) + 1, x_axis.at(high) - x_axis.at(low) - 2
        top, gap = y_axis.at(right), sorted((y_axis.at(right), y_axis.at(sure)))
        said = escape(
            f"{low:.0%} to {high:.0%} sure: {count:,} guesses, {right:.1%} of them right, "
            f"{sure:.1%} claimed"
        )
        few = ' class="few"' if count < FEW else ""
        parts.append(f"<g{few}><title>{said}</title>")
        parts.append(_box("bar-right", x, top, width, bottom - top))
        parts.append(_box("bar-gap", x, gap[0], width, gap[1] - gap[0]))
        tall = max(1.0, (histogram_px - 8) * count / most)
        parts.append(_box("bar-count", x, HEIGHT + histogram_px - tall, width, tall) + "</g>")
    start, end = (x_axis.at(0), y_axis.at(0)), (x_axis.at(1), y_axis.at(1))
    parts.append(_stroke("diagonal", *start, *end))
    if after is not None:
        for sure, right, count in zip(after.confidence, after.accuracy, after.counts, strict=True):
            said = escape(f"at the temperature: {sure:.1%} sure, {right:.1%} of {count:,} right")
            spot = f'<circle class="after" cx="{x_axis.at(sure):.1f}" cy="{y_axis.at(right):.1f}"'
            parts.append(f'{spot} r="{2.5 + 4 * math.sqrt(count / total):.1f}">')
            parts.append(f"<title>{said}</title></circle>")
    label = "Reliability diagram: the share that was right over how sure the model was"
    return _svg(parts, HEIGHT + histogram_px, label)


class _Axis:
    """Places numbers between two pixels, and chooses the numbers to write there."""

    def __init__(
        self, low: float, high: float, first_px: float, last_px: float, *,
        log: bool = False, whole: bool = False, most: float | None = None,
    ):  # fmt: skip
        self._log, self._first, self._last = log, first_px, last_px
        if log:
            exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            exponents = exponents if len(exponents) > 1 else range(exponents[0], exponents[0] + 2)
            self.ticks = [10.0**e for e in exponents[:: -(-len(exponents) // 6)]]
            self._low, self._high = float(exponents[0]), float(exponents[-1])
            return
        if high - low < 1e-12:
            low, high = low - (0.5 if whole else 0.05), high + (0.5 if whole else 0.05)
        step = _step((high - low) / 5, whole=whole)
        if whole:  # epochs: the line may begin and end at the frame, only the numbers are round
            self._low, self._high = low, high
        else:
            self._low = math.floor(low / step + 1e-9) * step
            self._high = math.ceil(high / step - 1e-9) * step
            if most is not None:
                self._low, self._high = max(0.0, self._low), min(most, self._high)
        first = math.ceil(self._low / step - 1e-9)
        count = math.floor(self._high / step + 1e-9) - first
        self.ticks = [(first + i) * step for i in range(count + 1)]

    def at(self, value: float) -> float:
        value = math.log10(value) if self._log else value
        share = (value - self._low) / (self._high - self._low)
        return self._first + share * (self._last - self._first)


def _step(rough: float, *, whole: bool) -> float:
    """Rounds up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough * 0.999)
    return max(1.0, step) if whole else step


def _finite(points: Iterable[tuple[float, float]], log: bool) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x + y) and (y > 0 or not log)]


def _frame(x_axis, y_axis, tell, x_label, *, below: float = 0) -> Iterable[str]:
    bottom = HEIGHT - _BOTTOM
    for tick in y_axis.ticks:
        y = y_axis.at(tick)
        yield _stroke("grid", _LEFT, y, WIDTH - _RIGHT, y)
        yield _text(_LEFT - 7, y + 4.5, tell(tick), anchor="end")
    for tick in x_axis.ticks:
        said = f"{tick:g}" if not below else _percent(tick)
        yield _text(x_axis.at(tick), bottom + 17, said, anchor="middle")
    yield _stroke("axis", _LEFT, bottom, WIDTH - _RIGHT, bottom)
    yield _text((_LEFT + WIDTH - _RIGHT) / 2, bottom + 34, x_label, anchor="middle")


def _mark(x: float, mark: Mark, row: int) -> Iterable[str]:
    y = _TOP - 5 - 15 * row
    yield _stroke(f"mark {mark.look}", x, y - 9, x, HEIGHT - _BOTTOM)
    fits = x + 5 + _LETTER_PX * len(mark.text) < WIDTH - _RIGHT
    side = dict(anchor="start") if fits else dict(anchor="end")
    yield _text(x + (5 if fits else -5), y, mark.text, look=f"mark {mark.look}", **side)


def _svg(parts: Iterable[str], height: float, label: str, *, above: float = 0) -> str:
    box = f"0 {-above:g} {WIDTH} {height + above:g}"
    head = f'<svg class="chart" viewBox="{box}" role="img"'
    return f'{head} aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, *, anchor: str, look: str = "") -> str:
    look = f' class="{look}"' if look else ""
    return f'<text{look} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _stroke(look: str, x1: float, y1: float, x2: float, y2: float) -> str:
    place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line class="{look}" {place}/>'


def _box(look: str, x: float, y: float, width: float, height: float) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{look}" {place}/>'


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _number(value: float) -> str:
    return f"{value:.3g}"
