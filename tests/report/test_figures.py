"""Figures: points lie where their numbers say, as SVG in the page's colors and as PNG on white."""

import io
import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from vggjax.evaluation.calibration import reliability
from vggjax.report import figures, plot_style, thumbnails
from vggjax.report.figures import (
    MAX_MARKED,
    WIDTH,
    Line,
    Mark,
    draw_confusion,
    draw_curves,
    draw_reliability,
    line_chart,
)
from vggjax.report.plot_style import drawable, image_bytes, png
from vggjax.report.thumbnails import Cell, image_grid

ROWS = [{"epoch": e, "stage": "head", "val/loss": 1 / e, "val/accuracy": 0.5} for e in (1, 2)]
NAN = float("nan")


def chart(*points, title="loss", **options):
    return ElementTree.fromstring(
        line_chart([Line("a", "c0", points)], title=title, **options).svg()
    )


def markers(svg, color="c0"):
    """Return the places of a line's markers, (N, 2) px."""
    uses = [node for node in svg.iter("use") if f"fill: var(--{color})" in node.get("style", "")]
    return np.array([(float(node.get("x")), float(node.get("y"))) for node in uses])


def texts(svg):
    """Return every text with its place."""
    return {n.text: (float(n.get("x")), float(n.get("y"))) for n in svg.iter("text")}


def tooltips(svg):
    return [node.text for node in svg.iter("title")]


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_points_lie_on_a_linear_scale_between_the_labels_of_the_axes():
    svg = chart((1, 0.0), (2, 0.5), (5, 2.0))
    x, y = markers(svg).T
    assert x[0] < x[1] < x[2]
    assert (x[2] - x[0]) / (x[1] - x[0]) == pytest.approx(4, abs=0.01)
    assert (y[0] - y[2]) / (y[0] - y[1]) == pytest.approx(4, abs=0.01)
    labels = texts(svg)
    for value, place in zip(("0", "0.5", "2"), y, strict=True):
        assert labels[value][1] - labels["0"][1] == pytest.approx(place - y[0], abs=0.5)
    assert labels["5"][0] == pytest.approx(x[2], abs=0.5)
    assert (x >= 0).all() and (x <= WIDTH).all() and (y >= 0).all()


def test_a_log_axis_has_powers_of_ten_and_leaves_out_what_is_not_positive():
    svg = chart((1, 1e-3), (2, 1e-4), (3, 1e-5), (4, 0), log=True)
    y = markers(svg)[:, 1]
    assert len(y) == 3 and y[2] - y[1] == pytest.approx(y[1] - y[0], abs=0.1)
    assert {"0.001", "0.0001", "1e-05"} <= set(texts(svg))


def test_names_are_escaped_and_each_point_has_a_tooltip():
    text = line_chart(
        [Line("<b>&\"'", "c0", [(1, 0.25)])], title='"><script>', percent=True,
        marks=[Mark(1, "<i>unfrozen")], legend=True,
    ).svg()  # fmt: skip
    assert "<b>" not in text and "<script>" not in text and "<i>" not in text
    svg = ElementTree.fromstring(text)
    assert tooltips(svg) == ["<b>&\"', epoch 1: 25%"]
    assert {"<i>unfrozen", "<b>&\"'", '"><script>'} <= set(texts(svg))


def test_points_that_are_not_finite_are_left_out_and_an_empty_chart_is_drawn():
    svg = chart((1, NAN), (2, 1.0), (3, float("inf")))
    assert len(markers(svg)) == 1 and "nan" not in ElementTree.tostring(svg, encoding="unicode")
    assert len(markers(chart())) == 0
    assert len(markers(chart((3, 0.5), percent=True, best=(3, NAN)))) == 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_constant_share_stays_inside_the_chart(share):
    y = markers(chart((1, share), (2, share), percent=True))[:, 1]
    assert ((y >= 0) & (y <= 320)).all() and y[0] == y[1]


def test_each_stage_and_collapse_has_a_line_and_labels_never_overlap():
    marks = [Mark(2.5, "block5 unfrozen"), Mark(2.6, "collapse", is_collapse=True)]
    svg = chart(*((e, e) for e in range(1, 6)), marks=marks)
    dashed = [n.get("style") for n in svg.iter("path") if "stroke-dasharray" in n.get("style", "")]
    assert ["var(--wrong)" in style for style in dashed] == [False, True]
    labels = texts(svg)
    assert labels["collapse"][1] - labels["block5 unfrozen"][1] >= 14


def test_a_long_line_is_drawn_without_markers():
    assert len(markers(chart(*((e, 1 / e) for e in range(1, MAX_MARKED + 2))))) == 0


def test_a_steep_loss_is_drawn_on_a_log_scale_and_equal_rates_share_a_line():
    rows = [row | {"learning_rate/head": 1e-3, "learning_rate/backbone": 1e-3} for row in ROWS]
    assert [drawing.label for drawing in draw_curves(rows)] == ["Loss", "Accuracy", "Learning rate"]
    assert [line.name for line in figures.learning_rates(rows)] == ["head and backbone"]


def test_learning_rates_are_shown_down_to_a_thousandth_of_the_lowest_peak():
    """A cosine ends at almost nothing, which would take most of a logarithmic axis."""
    rates = zip((1e-3, 5e-4, 1e-10), (1e-5, 5e-6, 1e-12), strict=True)
    rows = [
        {"epoch": epoch, "learning_rate/head": head, "learning_rate/backbone": backbone}
        for epoch, (head, backbone) in enumerate(rates, start=1)
    ]
    low, high = draw_curves(rows)[-1].figure.axes[0].get_ylim()
    assert low == pytest.approx(1e-8) and high >= 1e-3
    steep = [row | {"val/loss": 1000.0 ** -row["epoch"]} for row in ROWS]
    assert draw_curves(steep)[0].label == "Loss (log scale)"


def test_the_best_epoch_gets_a_ring_around_its_validation_point():
    svg = ElementTree.fromstring(draw_curves(ROWS, best_epoch=2)[0].svg())
    assert tooltips(svg)[-1] == "best, kept: epoch 2, 0.5"
    ring = next(group for group in svg.iter("g") if group.findtext("title", "").startswith("best"))
    x, y = (float(ring.find("use").get(name)) for name in "xy")
    assert (x, y) == tuple(markers(svg, "c1")[1])


def test_a_reliability_diagram_has_a_bar_as_high_as_the_accuracy_of_each_bin():
    measured = reliability(np.array([0.55, 0.95, 0.97]), np.array([1, 0, 1]), num_bins=10)
    svg = ElementTree.fromstring(draw_reliability(measured, other=measured).svg())
    pale = "fill: var(--c0); fill-opacity: 0.4"  # there are few predictions
    bars = [node.get("d") for node in svg.iter("path") if pale in node.get("style")]
    heights = [np.ptp(np.array(re.findall(r"[\d.]+", d), float)[1::2]) for d in bars]
    assert heights == [pytest.approx(2 * heights[1], abs=0.1), heights[1]]
    assert sum("2 predictions, accuracy 50.0%" in text for text in tooltips(svg)) == 1
    dots = markers(svg, "c2")
    assert len(dots) == 3 and len(tooltips(svg)) == 4  # a dot is in the legend


def test_an_svg_takes_its_colors_from_the_page_and_refers_to_nothing_outside():
    def draw():
        curves = draw_curves(ROWS, marks=[Mark(1.5, "block5")])
        return [d.svg() for d in (*curves, draw_confusion(np.eye(30), ["a"] * 30))]

    ids = []
    for text in (texts := draw()):
        assert not re.search(r"#[0-9a-f]{6}\b|https?:|xmlns|<style|<metadata|<script", text)
        svg = ElementTree.fromstring(text)
        ids += (own := [node.get("id") for node in svg.iter() if node.get("id")])
        assert set(re.findall(r"url\(#(\w+)\)|href=\"#(\w+)\"", text)) <= {
            pair for id in own for pair in ((id, ""), ("", id))
        }
    assert len(set(ids)) == len(ids)
    assert draw() == texts


def test_every_png_is_on_white():
    measured = reliability(np.array([0.2, 0.9]), np.array([0, 1]))
    for data in (
        png(*draw_curves(ROWS, best_epoch=2, marks=[Mark(2, "collapse", is_collapse=True)])),
        png(draw_reliability(measured)),
        png(draw_confusion([[3, 1], [0, 4]], ["a", "b"])),
        image_bytes(image_grid([[Cell(None, (("a", "wrong"), ("b", "muted")))]])),
    ):
        assert (pixels(data)[0, 0] == 255).all()


def test_panels_stand_side_by_side_in_one_png():
    drawings = draw_curves(ROWS)
    one, both = pixels(png(drawings[0])), pixels(png(*drawings))
    assert both.shape[0] == one.shape[0] and both.shape[1] > 1.9 * one.shape[1]
    width = one.shape[1] - plot_style.MARGIN_PX
    np.testing.assert_array_equal(both[:, :width], one[:, :width])


def test_a_confusion_matrix_is_darkest_in_the_column_that_is_always_predicted():
    confusion = np.zeros((30, 30), int)
    confusion[:, 20] = np.arange(1, 31)  # every row lies in that column only
    image = pixels(png(draw_confusion(confusion, [f"{i}" for i in range(30)])))
    matrix = image[:, : int(image.shape[1] * 0.85)]  # the color bar lies to its right
    rows, columns = np.nonzero((abs(matrix - (0x2F, 0x86, 0xD6)) < 3).all(-1))
    assert np.ptp(rows) > 20 * np.ptp(columns)


def test_names_that_the_font_lacks_are_drawn_without_a_warning():
    names = ["薔薇", "роза", r"$\frac$", "🌹", "a" * 500, "b\x00\n"]
    assert [drawable(name, i) for i, name in enumerate(names)] == [
        "class 0",
        "роза",
        r"$\frac$",
        "class 3",
        "aaaaaaaaaaa…aaaaaaaaaa",
        r"b\x00\n",
    ]
    png(draw_confusion(np.eye(6, dtype=int), names))
    image_bytes(image_grid([[Cell(np.zeros((9, 9, 3), np.uint8), ((n, "plain"),)) for n in names]]))
    png(*draw_curves(ROWS, marks=[Mark(1.5, name) for name in names]))


def test_drawing_leaves_the_global_state_of_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    drawing = draw_confusion([[1, 0], [0, 1]], ["a", "b"])
    png(drawing), drawing.svg()
    assert dict(matplotlib.rcParams) == before
    for module in (figures, plot_style, thumbnails):
        assert "import matplotlib.pyplot" not in Path(module.__file__).read_text(encoding="utf-8")


def test_an_image_grid_shows_its_images_in_their_places():
    red, blue = np.zeros((2, 30, 60, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    grid = pixels(image_bytes(image_grid([[Cell(red), Cell(blue)], [Cell(None), Cell(red)]])))
    color = np.sign(grid[..., 0] - grid[..., 2])  # red 1, blue -1, white and gray near 0
    near, far = ([grid.shape[i] * k // 4 for i in (0, 1)] for k in (1, 3))
    assert color[near[0], near[1]] == 1 and color[near[0], far[1]] == -1
    assert color[far[0] - 60, near[1]] == 0 and color[far[0], far[1]] == 1


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ((100, 50), (200, 100)),
        ((8, 8), (200, 200)),
        ((150, 90), (150, 90)),
        ((1000, 500), (200, 100)),
        ((5000, 1), (200, 4)),
    ],
)
def test_a_thumbnail_fits_into_200_px_and_a_strip_stays_visible(shape, shown):
    image = np.zeros((*shape, 3), np.uint8)
    assert thumbnails.thumbnail(image).shape == (*shown, 3)
