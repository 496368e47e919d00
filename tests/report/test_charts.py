"""The page's own charts: valid, escaped, and every point where its numbers say."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from vggjax.evaluation.calibration import reliability
from vggjax.report.charts import HEIGHT, WIDTH, Line, Mark, line_chart, reliability_chart


def parse(svg):
    return ElementTree.fromstring(svg)


def texts(svg):
    return [node.text for node in parse(svg).iter("text")]


def points(svg, look):
    (line,) = [n for n in parse(svg).iter("polyline") if n.get("class") == look]
    return np.array([pair.split(",") for pair in line.get("points").split()], float)


def test_points_lie_on_a_straight_scale_between_the_numbers_of_the_axes():
    svg = line_chart([Line("a", "c0", [(1, 0.0), (2, 0.5), (5, 2.0)])], label="loss")
    drawn = points(svg, "c0")
    x, y = drawn.T
    assert (x[2] - x[0]) / (x[1] - x[0]) == pytest.approx(4, abs=0.01)
    assert (y[0] - y[2]) / (y[0] - y[1]) == pytest.approx(4, abs=0.01)
    where = {n.text: float(n.get("y")) - 4.5 for n in parse(svg).iter("text") if n.get("x") < "50"}
    assert y[1] == pytest.approx(where["0.5"], abs=0.1)
    assert (drawn >= 0).all() and (x <= WIDTH).all() and (y <= HEIGHT).all()


def test_a_logarithmic_axis_counts_powers_of_ten():
    svg = line_chart(
        [Line("a", "c0", [(1, 1e-3), (2, 1e-4), (3, 1e-5), (4, 0)])], label="r", log=True
    )
    y = points(svg, "c0")[:, 1]
    assert len(y) == 3 and y[2] - y[1] == pytest.approx(y[1] - y[0], abs=0.2)
    assert {"0.001", "0.0001", "1e-05"} <= set(texts(svg))


def test_names_are_escaped_and_told_on_each_point():
    svg = line_chart(
        [Line("<b>&\"'", "c0", [(1, 0.25)])], label='"><script>', share=True,
        marks=[Mark(1, "<i>unfrozen")],
    )  # fmt: skip
    assert "<b>" not in svg and "<script>" not in svg and "<i>" not in svg
    titles = [node.text for node in parse(svg).iter("title")]
    assert titles == ["<b>&\"', epoch 1: 25%"]
    assert "<i>unfrozen" in texts(svg)


def test_what_is_no_number_is_left_out_and_nothing_at_all_is_a_chart_too():
    nan = float("nan")
    svg = line_chart(
        [Line("a", "c0", [(1, nan), (2, 1.0)]), Line("b", "c1", [(1, nan)])], label="x"
    )
    assert len(points(svg, "c0")) == 1 and "c1" not in svg and "nan" not in svg
    parse(line_chart([], label="empty"))
    parse(line_chart([Line("a", "c0", [(3, 0.5)])], label="one", share=True, best=(3, nan)))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_that_never_changes_stays_on_the_chart(share):
    drawn = points(
        line_chart([Line("a", "c0", [(1, share), (2, share)])], label="x", share=True), "c0"
    )
    assert ((drawn[:, 1] >= 0) & (drawn[:, 1] <= HEIGHT)).all()


def test_each_stage_and_collapse_has_its_line_and_its_word():
    marks = [Mark(2.5, "block5 unfrozen"), Mark(4, "collapse", "collapse")]
    svg = line_chart([Line("a", "c0", [(e, e) for e in range(1, 6)])], label="x", marks=marks)
    lines = [n.get("class") for n in parse(svg).iter("line") if "mark" in n.get("class")]
    assert lines == ["mark stage", "mark collapse"]
    words = {n.text: float(n.get("y")) for n in parse(svg).iter("text")}
    assert words["block5 unfrozen"] < words["collapse"]  # one above the other, never over


def test_many_points_are_a_line_without_dots():
    line = [(e, 1 / e) for e in range(1, 251)]
    assert "<circle" not in line_chart([Line("a", "c0", line)], label="x")


def test_a_reliability_diagram_has_a_bar_for_each_bin_that_is_as_high_as_its_share():
    found = reliability(np.array([0.55, 0.95, 0.97]), np.array([1, 0, 1]), num_bins=10)
    svg = reliability_chart(found, after=found)
    bars = [n for n in parse(svg).iter("rect") if n.get("class") == "bar-right"]
    heights = [float(bar.get("height")) for bar in bars]
    assert len(heights) == 2 and heights[0] == pytest.approx(2 * heights[1], abs=0.2)
    assert len(re.findall('<g class="few">', svg)) == 2
    assert sum(n.get("class") == "after" for n in parse(svg).iter("circle")) == 2
