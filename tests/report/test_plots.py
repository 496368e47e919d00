import io
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from vggjax.evaluation.calibration import reliability
from vggjax.report import curves, image_grid, plot_style, plots
from vggjax.report.image_grid import Cell


def _pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


ROWS = [{"epoch": e, "stage": "head", "val/loss": 1 / e, "val/accuracy": 0.5} for e in (1, 2)]


def test_every_plot_is_on_white_paper_and_the_matrix_on_the_dark_pages_too():
    for drawn in (
        curves.draw_curves(ROWS, best_epoch=2, collapses=[2]),
        curves.draw_reliability(reliability(np.array([0.2, 0.9]), np.array([0, 1]))),
        plots.draw_confusion([[3, 1], [0, 4]], ["a", "b"]),
        image_grid.draw_image_grid([[Cell(None, (("a", "wrong"), ("b", "muted")))]]),
    ):
        assert (_pixels(drawn)[0, 0] == 255).all()
    dark = plots.draw_confusion([[3, 1], [0, 4]], ["a", "b"], dark=True)
    assert (_pixels(dark)[0, 0] < 40).all()


def test_a_sheet_shows_its_images_in_their_places():
    red, blue = np.zeros((2, 30, 60, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = _pixels(
        image_grid.draw_image_grid([[Cell(red), Cell(blue)], [Cell(None), Cell(red)]])
    ).astype(int)
    found = np.sign(sheet[..., 0] - sheet[..., 2])  # red 1, blue -1, white and gray near 0
    middle = [sheet.shape[i] // 4 for i in (0, 1)]
    far = [sheet.shape[i] * 3 // 4 for i in (0, 1)]
    assert found[middle[0], middle[1]] == 1 and found[middle[0], far[1]] == -1
    assert found[far[0] - 60, middle[1]] == 0 and found[far[0], far[1]] == 1


def test_a_matrix_is_darkest_in_the_column_of_the_class_that_is_always_guessed():
    confusion = np.zeros((30, 30), int)
    confusion[:, 20] = np.arange(1, 31)  # rows are the truth: each one is all in that column
    image = _pixels(plots.draw_confusion(confusion, [f"{i}" for i in range(30)]))
    dark = (image == (0x0B, 0x4F, 0x8F)).all(-1)
    rows, columns = np.nonzero(dark[:, : int(dark.shape[1] * 0.85)])  # the color bar is beyond
    assert np.ptp(rows) > 20 * np.ptp(columns)


def test_names_that_the_font_lacks_are_drawn_without_a_warning():
    names = ["薔薇", "роза", r"$\frac$", "🌹", "a" * 500, "b\x00\n"]
    assert [plot_style.drawable(name, i) for i, name in enumerate(names)] == [
        "class 0",
        "роза",
        r"$\frac$",
        "class 3",
        "aaaaaaaaaaa…aaaaaaaaaa",
        r"b\x00\n",
    ]
    plots.draw_confusion(np.eye(6, dtype=int), names)
    image_grid.draw_image_grid(
        [[Cell(np.zeros((9, 9, 3), np.uint8), ((n, "plain"),)) for n in names]]
    )
    curves.draw_curves([{"epoch": 1, "stage": "薔薇"}, {"epoch": 2, "stage": r"$\frac$"}])


def test_drawing_leaves_matplotlibs_settings_alone():
    before = dict(matplotlib.rcParams)
    plots.draw_confusion([[1, 0], [0, 1]], ["a", "b"], dark=True)
    assert dict(matplotlib.rcParams) == before


def test_no_plot_goes_through_pyplot():
    for module in (curves, plot_style, plots, image_grid):
        text = Path(module.__file__).read_text(encoding="utf-8")
        assert "pyplot" not in text.replace("pyplot's", ""), module.__name__
