"""The pages in a real browser, wide and narrow, light and dark: complete and without overflow."""

import json
import shutil

import pytest
from support.browser import Browser
from support.evaluated_run import epochs_log
from support.tiny_run import make_images, make_run

from vggjax.data.quality.doctor import examine
from vggjax.evaluation.evaluate import evaluate
from vggjax.report.compare import write_comparison
from vggjax.report.doctor_page import write_doctor_page
from vggjax.report.report import write_report

pytestmark = pytest.mark.slow

NAMES = [
    "daisy",
    "<i>rose & co",
    "薔薇",
    "a-very-long-class-name-without-any-place-to-break-it-at-all",
]
NAMES += [f"kind {i}" for i in range(8)]

OVERFLOWING = """
[...document.querySelectorAll('body *')]
  .filter(e => !e.closest('.scroll') && !e.closest('svg'))
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => e.tagName + '.' + e.className).slice(0, 5)
"""
BROKEN = "[...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).length"
COLORLESS = """
[...document.querySelectorAll('.chart text')]
  .filter(e => getComputedStyle(e).fill == 'rgb(0, 0, 0)').map(e => e.outerHTML).slice(0, 5)
"""
"""Texts of charts in the default black, which dark mode would hide."""

BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    run = make_run(folder / "one", make_images(folder / "flowers", NAMES, each=8))
    collapse = {"kind": "collapse", "step": 9, "epoch": 3, "stage": "head", "reason": "Why.",
                "advice": "Do.", "action": "warn"}  # fmt: skip
    (run / "log.jsonl").write_text(epochs_log(5) + json.dumps(collapse) + "\n")
    evaluate(run)
    report = write_report(run)
    other = shutil.copytree(run, folder / ("another-run-with-a-long-name-" * 3))
    comparison = write_comparison([run, other], folder / "c.html")
    doctor = write_doctor_page(examine(str(folder / "flowers")), folder / "doctor.html")
    return {"report": report, "comparison": comparison, "doctor": doctor}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["report", "comparison", "doctor"])
def test_a_page_is_complete_without_errors_and_without_overflow(browser, pages, name, width, dark):
    browser.open(pages[name], width=width, dark=dark)
    assert browser.messages == []
    assert browser.evaluate("document.images.length") >= (30 if name == "report" else 0)
    assert browser.evaluate(BROKEN) == 0
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(OVERFLOWING) == []
    assert browser.evaluate(COLORLESS) == []
    red = int(browser.evaluate(BACKGROUND).removeprefix("rgb(").split(",")[0])
    assert (red < 60) if dark else (red > 200)


def test_every_link_of_the_contents_has_a_target(browser, pages):
    browser.open(pages["report"], width=1280)
    links = "[...document.querySelectorAll('nav a')]"
    assert browser.evaluate(f"{links}.filter(a => !document.querySelector(a.hash)).length") == 0
    assert browser.evaluate(f"{links}.length") >= 12


def test_a_page_prints(browser, pages):
    browser.open(pages["report"], width=1280, dark=True)
    pdf = browser.print()
    assert pdf.startswith(b"%PDF") and 3 <= pdf.count(b"/Type /Page\n") <= 12


def test_the_browser_reports_errors_and_overflow(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<img src='no-such-file.png'><script>nowhere()</script><p style='width:999px'>x"
    )
    browser.open(page, width=390)
    assert browser.messages and browser.evaluate(BROKEN) == 1 and browser.evaluate(OVERFLOWING)
