import io
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from vggjax.results import plots


def _pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_every_plot_has_a_light_and_a_dark_paper():
    rows = [{"epoch": e, "stage": "head", "val/loss": 1 / e, "val/accuracy": 0.5} for e in (1, 2)]
    for draw in (
        lambda dark: plots.draw_curves(rows, best_epoch=2, dark=dark),
        lambda dark: plots.draw_confusion([[3, 1], [0, 4]], ["a", "b"], dark=dark),
        lambda dark: plots.draw_mistakes([(None, "a", "b", 0.9)], dark=dark),
    ):
        assert (_pixels(draw(False))[0, 0] == 255).all()
        assert (_pixels(draw(True))[0, 0] < 40).all()


def test_a_matrix_is_darkest_in_the_column_of_the_class_that_is_always_guessed():
    confusion = np.zeros((30, 30), int)
    confusion[:, 20] = np.arange(1, 31)  # rows are the truth: each one is all in that column
    image = _pixels(plots.draw_confusion(confusion, [f"{i}" for i in range(30)]))
    dark = (image == (0x0B, 0x4F, 0x8F)).all(-1)
    rows, columns = np.nonzero(dark[:, : int(dark.shape[1] * 0.85)])  # the colour bar is beyond
    assert np.ptp(rows) > 20 * np.ptp(columns)


def test_names_that_the_font_lacks_are_drawn_without_a_warning():
    names = ["薔薇", "роза", r"$\frac$", "🌹", "a" * 500, "b\x00\n"]
    assert [plots.drawable(name, i) for i, name in enumerate(names)] == [
        "class 0",
        "роза",
        r"$\frac$",
        "class 3",
        "aaaaaaaaaaa…aaaaaaaaaa",
        r"b\x00\n",
    ]
    plots.draw_confusion(np.eye(6, dtype=int), names)
    plots.draw_mistakes([(np.zeros((9, 9, 3), np.uint8), name, name, 0.5) for name in names])
    plots.draw_curves([{"epoch": 1, "stage": "薔薇"}, {"epoch": 2, "stage": r"$\frac$"}])


def test_drawing_leaves_matplotlibs_settings_alone():
    before = dict(matplotlib.rcParams)
    plots.draw_confusion([[1, 0], [0, 1]], ["a", "b"], dark=True)
    assert dict(matplotlib.rcParams) == before


def test_no_plot_goes_through_pyplot():
    assert "pyplot" not in Path(plots.__file__).read_text().replace("pyplot's", "")
