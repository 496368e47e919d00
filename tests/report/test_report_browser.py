"""The pages in a real browser, wide and narrow, light and dark: whole and within their edges."""

import json
import shutil

import pytest
from support.browser import Browser
from support.evaluated_run import epochs_log
from support.tiny_run import make_images, make_run

from vggjax.evaluation.evaluate import evaluate
from vggjax.report.compare import write_comparison
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
PAPER = "getComputedStyle(document.body).backgroundColor"


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
    return {"report": report, "comparison": write_comparison([run, other], folder / "c.html")}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_a_page_is_whole_quiet_and_inside_its_edges(browser, pages, name, width, dark):
    browser.open(pages[name], width=width, dark=dark)
    assert browser.said == []
    assert browser.ask("document.images.length") >= (30 if name == "report" else 0)
    assert browser.ask(BROKEN) == 0
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(OVERFLOWING) == []
    red = int(browser.ask(PAPER).removeprefix("rgb(").split(",")[0])
    assert (red < 60) if dark else (red > 200)


def test_every_link_of_the_contents_leads_somewhere(browser, pages):
    browser.open(pages["report"], width=1280)
    links = "[...document.querySelectorAll('nav a')]"
    assert browser.ask(f"{links}.filter(a => !document.querySelector(a.hash)).length") == 0
    assert browser.ask(f"{links}.length") >= 12


def test_a_page_prints(browser, pages):
    browser.open(pages["report"], width=1280, dark=True)
    pdf = browser.print()
    assert pdf.startswith(b"%PDF") and 3 <= pdf.count(b"/Type /Page\n") <= 12


def test_a_browser_that_finds_an_error_says_so(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<img src='no-such-file.png'><script>nowhere()</script><p style='width:999px'>x"
    )
    browser.open(page, width=390)
    assert browser.said and browser.ask(BROKEN) == 1 and browser.ask(OVERFLOWING)
