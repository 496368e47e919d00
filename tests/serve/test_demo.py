"""The demo in a real browser: an image is chosen, and its classes and its map appear."""

import re
import subprocess
import sys

import pytest

pytest.importorskip("gradio", reason="it is in the extra demo, which the tests do not need")
from support.browser import Browser
from support.tiny_run import make_images, make_run

from vggjax.evaluation.predict import load_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("shown")
    images = make_images(root / "images", each=4)
    return make_run(root / "run", images, split="0.5,0.25,0.25", model="vgg11")


@pytest.fixture(scope="module")
def address(run):
    command = [sys.executable, "-m", "vggjax", "demo", str(run), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    yield re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
    process.terminate()
    assert process.wait(60) == 0
    process.stdout.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


INPUT = "input[type=file]"
TEXT = "document.body.innerText"


@pytest.mark.parametrize("width", [390, 1280])
def test_an_image_gets_the_classes_of_predict_and_a_map(browser, address, run, width):
    (path, *_) = sorted((run.parent / "images").rglob("*.png"))
    expected = load_run(run).predict([path])
    best = f"{round(100 * float(expected.probs.max()))}%"
    browser.open(address, width=width)
    browser.wait(f"!!document.querySelector('{INPUT}')")
    browser.choose(INPUT, path)
    browser.wait(f"{TEXT}.includes({best!r})")
    (name,) = expected.names
    assert name in browser.evaluate(TEXT)
    browser.wait("[...document.images].filter(i => i.naturalWidth >= 384).length == 1")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("[...document.querySelectorAll('i')].every(e => e.innerText != 'rose')")


def test_what_is_no_image_gets_the_reason(browser, address, tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    browser.open(address, width=1280)
    browser.wait(f"!!document.querySelector('{INPUT}')")
    browser.choose(INPUT, path)
    browser.wait(f"{TEXT}.includes('Error')")
