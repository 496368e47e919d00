"""The result of a run in a terminal and in a notebook."""

import json
import re
import sys
import webbrowser
from types import ModuleType

import numpy as np
import pytest
from support.evaluated_run import cross_validated, evaluated
from support.tiny_run import make_images

from vggjax.errors import VggjaxError
from vggjax.report.fit_result import FitResult


def result_of(workdir, **changes):
    evaluation = json.loads((workdir / "eval.json").read_text())
    values = dict(model=None, info=None, report=workdir / "report.html", unreadable={})
    return FitResult(workdir, evaluation=evaluation, **values | changes)


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("flowers") / "flowers")


@pytest.fixture(scope="module")
def result(tmp_path_factory, flowers):
    return result_of(evaluated(tmp_path_factory.mktemp("runs") / "run", flowers))


def test_four_lines_say_how_good_the_run_is_and_what_to_do_next(result):
    lines = repr(result).splitlines()
    assert len(lines) == 4 and str(result) == repr(result)
    assert f"accuracy {result.evaluation['accuracy']:.1%} (95% interval " in lines[0]
    assert "report.html" in lines[2] and f"--workdir {result.workdir}" in lines[3]


def test_a_notebook_shows_the_confusion_matrix_and_has_no_script(result):
    page = result._repr_html_()
    assert "<b>Test accuracy " in page and "<br>Weights: those of epoch" in page
    assert re.search(r'<img alt="Confusion matrix" .*data:image/png', page)
    assert "<script" not in page


def test_predictions_are_the_rows_of_the_csv_with_numbers(result):
    rows = result.predictions
    assert len(rows) == result.evaluation["num_examples"]
    assert np.mean([row["correct"] for row in rows]) == pytest.approx(result.evaluation["accuracy"])
    assert all(0 <= row["probability"] <= 1 and row["correct"] in (True, False) for row in rows)


def test_the_plots_are_figures(result):
    names = [axes.get_xlabel() for axes in result.plots.confusion().axes]
    assert "predicted class" in names
    assert all("epoch" in figure.axes[0].get_xlabel() for figure in result.plots.curves())


def test_a_cross_validation_has_the_same_lines(tmp_path, flowers):
    folds = result_of(cross_validated(tmp_path / "run", flowers))
    assert "folds, a model each" in repr(folds) and "accuracy" in folds._repr_html_()


def test_show_opens_the_browser_or_puts_the_page_below_the_cell(result, tmp_path, monkeypatch):
    opened, shown = [], []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    report = tmp_path / "report.html"
    report.write_text('<p title="a">it</p>')
    result_of(result.workdir, report=report).show()
    assert opened == [report.as_uri()]
    display = ModuleType("IPython.display")
    display.HTML, display.display = str, shown.append
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    result_of(result.workdir, report=report).show()
    assert "&lt;p title=&quot;a&quot;&gt;" in shown[0]
    with pytest.raises(VggjaxError, match="`vggjax report` writes it"):
        result_of(result.workdir, report=None).show()
