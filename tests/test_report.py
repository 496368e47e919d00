import dataclasses
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from tiny_run import CLASSES, make_pictures

from vggjax.data.sources import open_source
from vggjax.data.splits import make_splits, parse_split
from vggjax.errors import ConfigError
from vggjax.results import evaluate, metrics, plots
from vggjax.results.report import MAX_MISTAKES, best_epoch, read_epochs, write_report
from vggjax.training.checkpoint import ModelInfo
from vggjax.training.config import Config
from vggjax.training.run_folder import make_workdir


def _epochs(count):
    rows = [
        {"kind": "epoch", "step": 5 * e, "epoch": e, "stage": "head" if e < 3 else "head+block5"}
        | {"train/loss": 1 / e, "val/loss": 1.1 / e, "train/accuracy": 1 - 0.5 / e}
        | {"val/accuracy": 1 - 0.6 / e, "images_per_s": 100.0, "seconds": 40.0}
        for e in range(1, count + 1)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def _evaluated(workdir, dataset, *, share_wrong=0.5, epochs=4, unreadable=(), class_names=None):
    """Writes what a training and an evaluation leave, with invented probabilities."""
    config = Config(dataset=str(dataset), split="0.4,0.2,0.4", image_size=32)
    source = open_source(config.dataset)
    splits = make_splits(source, parse_split(config.split), config.seed)
    make_workdir(workdir, config, source, splits)
    (workdir / "log.jsonl").write_text(_epochs(epochs))
    names = source.class_names
    info = ModelInfo("vgg16", f"gap-{len(names)}", names, config.preprocessing, provenance={"a": 1})
    (workdir / "model.json").write_text(json.dumps(dataclasses.asdict(info)))

    rng, indices = np.random.default_rng(0), splits["test"]
    labels = source.labels[indices]
    guesses = (labels + (np.arange(len(labels)) < share_wrong * len(labels))) % len(names)
    probs = rng.uniform(0, 0.4, (len(labels), len(names)))
    probs[np.arange(len(labels)), guesses] = rng.uniform(0.5, 9, len(labels))
    probs /= probs.sum(1, keepdims=True)
    result = {
        "split": "test",
        **metrics.summarize(probs, labels, names),
        "class_names": list(names),
        "unreadable": dict(unreadable),
        "evaluated_at": "2026-01-02T03:04:05+00:00",
        "seconds": 1.5,
        "device": "1 x cpu (cpu)",
        "versions": {"jax": "0.0"},
    }
    (workdir / "eval.json").write_text(json.dumps(result))
    ids = [source.ids[i] for i in indices]
    text = evaluate._predictions_csv(ids, "test", labels, probs, names)
    (workdir / "predictions.csv").write_text(text, encoding="utf-8")
    return workdir


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
    return _evaluated(tmp_path / "run", make_pictures(tmp_path / "flowers"))


@pytest.fixture
def undrawn(monkeypatch):
    """Spares a second of drawing where a test looks at words alone."""
    file = io.BytesIO()
    Image.new("RGB", (3, 3)).save(file, "PNG")
    for name in ("draw_curves", "draw_confusion", "draw_mistakes"):
        monkeypatch.setattr(plots, name, lambda *_, **__: file.getvalue())


@pytest.fixture(scope="module")
def read_only(tmp_path_factory):
    """A run and its page, for the tests that only look."""
    folder = tmp_path_factory.mktemp("read_only")
    run = _evaluated(folder / "run", make_pictures(folder / "flowers"))
    return run, _page(run)


def test_the_page_needs_no_other_file_no_network_and_no_script(read_only):
    run, page = read_only
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", text)


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
    for truth, guess, count in metrics.most_confused(result["confusion"], result["class_names"]):
        assert f"{count}{truth} taken for {guess}" in page.words
    cells = re.findall(
        r"<td[^>]*>(\d+)</td>",
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


def test_the_surest_mistakes_come_first_each_with_its_picture(read_only):
    run, page = read_only
    shares = [float(share) for share in re.findall(r"taken for <b>.*?</b> ([\d.]+)%", _html(run))]
    assert shares == sorted(shares, reverse=True) and len(shares) == 6
    assert sum(address.startswith("data:image/jpeg") for address in page.addresses) == 6


@pytest.mark.usefixtures("undrawn")
def test_the_gallery_ends_somewhere(tmp_path):
    pictures = make_pictures(tmp_path / "flowers", each=40)
    page = _page(_evaluated(tmp_path / "run", pictures, share_wrong=1.0))
    assert sum(address.startswith("data:image/jpeg") for address in page.addresses) == MAX_MISTAKES
    assert f"Of 48 mistakes the {MAX_MISTAKES} in which the model was surest" in page.words


def test_a_run_without_mistakes_says_so_and_leaves_no_old_gallery(tmp_path):
    run = _evaluated(tmp_path / "run", make_pictures(tmp_path / "flowers"), share_wrong=0)
    (run / "plots").mkdir()
    (run / "plots" / "mistakes.png").write_bytes(b"old")
    page = _page(run)
    assert "There are none: every test picture was named correctly." in page.words
    assert "Most often confused" not in page.words
    assert not (run / "plots" / "mistakes.png").exists()


@pytest.mark.parametrize(("classes", "epochs"), [(2, 1), (2, 0), (25, 2), (100, 1)])
def test_few_epochs_and_few_or_many_classes_make_a_page(tmp_path, classes, epochs):
    names = [f"kind {i}" for i in range(classes)]
    run = _evaluated(tmp_path / "run", make_pictures(tmp_path / "x", names, each=3), epochs=epochs)
    page = _page(run)
    assert ("How it learned" in page.words) == (epochs > 0)
    assert ('class="matrix"' in _html(run)) == (classes <= plots.MAX_NUMBERED)
    assert all(f"kind {i}" in page.text for i in range(classes))


@pytest.mark.usefixtures("undrawn")
def test_pictures_that_were_left_out_are_named(tmp_path):
    pictures = make_pictures(tmp_path / "flowers")
    unreadable = [("a<b>\n.jpg", "truncated")]
    page = _page(_evaluated(tmp_path / "run", pictures, unreadable=unreadable))
    assert "1 picture could not be read" in page.words
    assert r"a<b>\n.jpg: truncated" in page.words


@pytest.mark.usefixtures("undrawn")
def test_the_page_is_written_without_photographs_where_the_data_set_is_gone(run, tmp_path):
    shutil.rmtree(tmp_path / "flowers")
    page = _page(run)
    assert "The pictures cannot be shown." in page.words
    assert not any(address.startswith("data:image/jpeg") for address in page.addresses)
    assert page.words.count("taken for") > 6


@pytest.mark.usefixtures("undrawn")
def test_a_photograph_that_cannot_be_read_any_more_leaves_its_place(run, tmp_path):
    for path in (tmp_path / "flowers").rglob("*.png"):
        path.write_bytes(b"x" * path.stat().st_size)
    assert _page(run).words.count("readable now") == 6


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
    run = _evaluated(tmp_path / "my run", make_pictures(tmp_path / "flowers"))
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
