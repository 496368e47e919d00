import html
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from support.evaluated_run import evaluated
from support.tiny_run import CLASSES, make_images

from vggjax.errors import ConfigError
from vggjax.evaluation import metrics
from vggjax.report import curves, plots, sections
from vggjax.report.report import write_report
from vggjax.report.run_files import best_epoch, read_epochs
from vggjax.report.sections import MAX_MISTAKES


class _Page(HTMLParser):
    """Collects text, addresses and whether every tag that opens is closed in its turn."""

    VOID = ("meta", "img", "source", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "srcset", "href", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    @property
    def words(self):
        return " ".join(self.text.split())


def _page(workdir):
    return _Page(write_report(workdir).read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path):
    return evaluated(tmp_path / "run", make_images(tmp_path / "flowers"))


@pytest.fixture
def undrawn(monkeypatch):
    """Spares a second of drawing where a test looks at words alone."""
    file = io.BytesIO()
    Image.new("RGB", (3, 3)).save(file, "PNG")
    for module, name in (
        (curves, "draw_curves"),
        (curves, "draw_reliability"),
        (plots, "draw_confusion"),
        (sections, "draw_image_grid"),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: file.getvalue())


@pytest.fixture(scope="module")
def read_only(tmp_path_factory):
    """A run and its page, for the tests that only look."""
    folder = tmp_path_factory.mktemp("read_only")
    run = evaluated(folder / "run", make_images(folder / "flowers"))
    return run, _page(run)


def test_the_page_needs_no_other_file_no_network_and_no_script(read_only):
    run, page = read_only
    assert page.addresses and all(re.match("data:image/|#", text) for text in page.addresses)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", text)
    anchors = {address[1:] for address in page.addresses if address.startswith("#")}
    assert anchors and all(f'id="{anchor}"' in text for anchor in anchors)


def test_the_page_gives_the_figures_of_the_evaluation(read_only):
    run, page = read_only
    result = json.loads((run / "eval.json").read_text())
    low, high = result["accuracy_interval"]
    assert f"{result['accuracy']:.1%} correct; 95 % interval {low:.1%} to {high:.1%}" in (
        page.words.replace("\xa0", " ")
    )
    for row in result["per_class"]:
        figures = " ".join(f"{row[key]:.1%}" for key in ("precision", "recall", "f1"))
        assert f"{row['name']} {figures} {row['support']}" in page.words
    support = {row["name"]: row["support"] for row in result["per_class"]}
    for truth, guess, count in metrics.most_confused(result["confusion"], result["class_names"]):
        assert f"{count} of {support[truth]} {truth} taken for {guess}" in page.words
    cells = re.findall(
        r"<td[^>]*>(\d+)(?:<small>\d+%</small>)?</td>",
        re.search(r'<table class="matrix">.*?</table>', _html(run), re.S)[0],
    )
    assert list(map(int, cells)) == np.ravel(result["confusion"]).tolist()


def _html(run):
    return (run / "report.html").read_text(encoding="utf-8")


def test_class_and_file_names_are_shown_as_they_are_and_never_run(read_only):
    run, page = read_only
    assert "i" not in page.tags
    assert all(name in page.text for name in CLASSES)
    assert html.escape("<i>rose & co/") in _html(run)


def test_the_surest_mistakes_come_first_each_with_its_image(read_only):
    run, page = read_only
    shares = [float(share) for share in re.findall(r"taken for <b>.*?</b> ([\d.]+)%", _html(run))]
    assert shares == sorted(shares, reverse=True) and len(shares) == 6
    gallery = re.search(r'<section id="mistakes">.*?</section>', _html(run), re.S)[0]
    assert gallery.count("data:image/jpeg") == 6
    pairs = re.search(r'<section id="pairs">.*?</section>', _html(run), re.S)[0]
    assert pairs.count("data:image/jpeg") == 6


@pytest.mark.usefixtures("undrawn")
def test_the_gallery_ends_somewhere(tmp_path):
    images = make_images(tmp_path / "flowers", each=40)
    run = evaluated(tmp_path / "run", images, share_wrong=1.0)
    page = _page(run)
    gallery = re.search(r'<section id="mistakes">.*?</section>', _html(run), re.S)[0]
    assert gallery.count("data:image/jpeg") == MAX_MISTAKES
    assert f"Of 48 mistakes the {MAX_MISTAKES} in which the model was surest" in page.words


def test_a_run_without_mistakes_says_so_and_leaves_no_old_gallery(tmp_path):
    run = evaluated(tmp_path / "run", make_images(tmp_path / "flowers"), share_wrong=0)
    (run / "plots").mkdir()
    (run / "plots" / "mistakes.png").write_bytes(b"old")
    page = _page(run)
    assert "There are none: every test image was named correctly." in page.words
    assert "Most often confused" not in page.words
    assert not (run / "plots" / "mistakes.png").exists()


@pytest.mark.parametrize(("classes", "epochs"), [(2, 1), (2, 0), (25, 2)])
def test_few_epochs_and_few_or_many_classes_make_a_page(tmp_path, classes, epochs):
    names = [f"kind {i}" for i in range(classes)]
    run = evaluated(tmp_path / "run", make_images(tmp_path / "x", names, each=3), epochs=epochs)
    page = _page(run)
    assert ("How it learned" in page.words) == (epochs > 0)
    assert ('<table class="matrix' in _html(run)) == (classes <= plots.MAX_NUMBERED)
    assert all(f"kind {i}" in page.text for i in range(classes))


@pytest.mark.usefixtures("undrawn")
def test_images_that_were_left_out_are_named(tmp_path):
    images = make_images(tmp_path / "flowers")
    unreadable = [("a<b>\n.jpg", "truncated")]
    page = _page(evaluated(tmp_path / "run", images, unreadable=unreadable))
    assert "1 image could not be read" in page.words
    assert r"a<b>\n.jpg: truncated" in page.words


@pytest.mark.usefixtures("undrawn")
def test_the_page_is_written_without_photographs_where_the_data_set_is_gone(run, tmp_path):
    shutil.rmtree(tmp_path / "flowers")
    page = _page(run)
    assert "The images cannot be shown." in page.words
    assert not any(address.startswith("data:image/jpeg") for address in page.addresses)
    assert page.words.count("taken for") > 6


@pytest.mark.usefixtures("undrawn")
def test_a_photograph_that_cannot_be_read_any_more_leaves_its_place(run, tmp_path):
    for path in (tmp_path / "flowers").rglob("*.png"):
        path.write_bytes(b"x" * path.stat().st_size)
    page = _page(run)
    assert page.words.count("readable now") == 6
    assert not any(address.startswith("data:image/jpeg") for address in page.addresses)


def test_a_run_that_was_not_evaluated_is_refused_with_the_command(run):
    (run / "eval.json").unlink()
    with pytest.raises(ConfigError, match=r"vggjax evaluate --workdir .*run"):
        write_report(run)
    with pytest.raises(ConfigError, match="no run folder"):
        write_report(run / "plots")


@pytest.mark.usefixtures("undrawn")
def test_damaged_results_are_refused(run):
    for name, text in [("predictions.csv", "id,split\n1,2\n"), ("eval.json", "{")]:
        whole = (run / name).read_text(encoding="utf-8")
        (run / name).write_text(text)
        with pytest.raises(ConfigError, match=f"{name} is .*damaged.*evaluate the run again"):
            write_report(run)
        (run / name).write_text(whole, encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_the_command_to_predict_with_can_be_pasted(tmp_path):
    run = evaluated(tmp_path / "my run", make_images(tmp_path / "flowers"))
    assert f"vggjax predict PHOTO.jpg --workdir '{run}'" in _page(run).text


def test_of_an_epoch_that_was_repeated_the_last_line_counts(run):
    with open(run / "log.jsonl", "a") as file:
        file.write('{"kind": "epoch", "step": 10, "epoch": 2, "val/loss": 0.5}\n{"kind": "epo')
    rows = read_epochs(run)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[1]["val/loss"] == 0.5


def test_the_best_epoch_is_the_first_of_the_best_values():
    rows = [{"epoch": e, "m/loss": v, "m/accuracy": v} for e, v in enumerate([3, 1, 1, 3, 2])]
    assert best_epoch(rows, "m/loss") == 1
    assert best_epoch(rows, "m/accuracy") == 0
    assert best_epoch([{"epoch": 7, "m/loss": float("nan")}], "m/loss") is None
    assert best_epoch([], "m/loss") is None
