"""The comparison of several runs: significance, differing settings, and what is refused."""

import csv
import io
import json

import pytest
from support.evaluated_run import evaluated
from support.page import Page
from support.tiny_run import make_images

from vggjax.cli.main import main
from vggjax.errors import ConfigError
from vggjax.evaluation.metrics import mcnemar
from vggjax.report.compare import MAX_CLASSES, compare_pair, differing_settings, write_comparison
from vggjax.report.run_files import read_run
from vggjax.training.config import Config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on the same images, one on other classes, one on more images."""
    folder = tmp_path_factory.mktemp("runs")
    images = make_images(folder / "flowers")
    evaluated(folder / "frozen", images, share_wrong=0.75)
    evaluated(folder / "fine", images, share_wrong=0.25, unfreeze=("block5",), epochs=6)
    evaluated(folder / "other", make_images(folder / "two", ("a", "b")))
    evaluated(folder / "more", make_images(folder / "larger", each=12))
    return folder


def comparison(runs, *names):
    path = write_comparison([runs / name for name in names], runs / "compare.html")
    return Page(path.read_text("utf-8"))


def test_two_runs_on_the_same_images_are_compared_image_by_image(runs):
    pair = compare_pair(read_run(runs / "frozen"), read_run(runs / "fine"))
    frozen, fine = (
        {
            row["id"]: row["correct"]
            for row in csv.DictReader(io.StringIO((runs / name / "predictions.csv").read_text()))
        }
        for name in ("frozen", "fine")
    )
    only_fine = sum(frozen[id] == "0" and fine[id] == "1" for id in frozen)
    assert pair == {
        "paired": True, "total": len(fine), "only_first": 0, "only_second": only_fine,
        "p": mcnemar(0, only_fine),
    }  # fmt: skip
    assert "fine is better" in comparison(runs, "frozen", "fine").words


def test_runs_on_different_images_are_not_paired(runs):
    assert compare_pair(read_run(runs / "frozen"), read_run(runs / "more"))["paired"] is False
    words = comparison(runs, "frozen", "more").words
    assert "not evaluated on the same images" in words and "different datasets" in words


def test_the_page_shows_the_metrics_and_the_differing_settings_of_each_run(runs):
    page = comparison(runs, "frozen", "fine")
    for name in ("frozen", "fine"):
        result = json.loads((runs / name / "eval.json").read_text())
        low, high = result["accuracy_interval"]
        assert f"{name} {result['accuracy']:.1%} {low:.1%} to {high:.1%}" in page.words
    assert "<th>unfreeze</th>" in page.html and "<th>dataset</th>" not in page.html
    assert "2 min 40 s" in page.text and "4 min 0 s" in page.text
    assert page.html.count('class="chart"') == 2
    assert "<script" not in page.html and "<i>rose" not in page.html and "<i>rose" in page.text


def test_only_the_classes_that_differ_most_are_listed(tmp_path):
    names = [f"kind {i:02}" for i in range(MAX_CLASSES + 2)]
    images = make_images(tmp_path / "x", names, each=3)
    for name, share in (("a", 0.1), ("b", 0.9)):
        evaluated(tmp_path / name, images, share_wrong=share)
    page = comparison(tmp_path, "a", "b")
    assert f"The {MAX_CLASSES} of {len(names)} classes" in page.words
    assert page.section("classes").count("<tr><th>kind") == MAX_CLASSES


def test_equal_augmentations_are_no_difference_however_they_are_written():
    preset = Config(dataset="a", augment="flip")
    assert differing_settings([preset, Config(dataset="a", horizontal_flip=True)]) == {}
    settings = differing_settings([preset, Config(dataset="a", augment="none", num_threads=2)])
    assert settings == {"augmentation": ["flip", "none"]}


def test_runs_in_folders_of_the_same_name_get_distinct_names(runs, tmp_path):
    for place in ("a", "b"):
        evaluated(tmp_path / place / "run", runs / "flowers")
    words = comparison(tmp_path, "a/run", "b/run").words
    assert "a/run and b/run" in words


@pytest.mark.parametrize(
    ("names", "out", "message"),
    [
        (["frozen", "other"], "c.html", "different classes cannot be compared.*a, b"),
        (["frozen", "frozen"], "c.html", "given twice"),
        (["frozen", "flowers"], "c.html", "not a run folder"),
        (["frozen", "fine"], "no/c.html", "--out must be a file in an existing folder"),
        (["frozen", "fine"], "c.png", r"--out must end in \.html"),
        (["frozen"], "c.html", "--out applies to the report of several runs"),
        ([], None, "Give the folder"),
    ],
)
def test_what_cannot_be_compared_is_refused_on_one_line(runs, capsys, names, out, message):
    words = [str(runs / name) for name in names]
    words += ["--out", str(runs / out)] if out else []
    assert main(["report", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("vggjax: error: ")
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(error)


def test_the_command_writes_one_report_or_a_comparison(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(runs / "fine")]) == 0
    assert (runs / "fine" / "report.html").exists()
    assert main(["report", str(runs / "fine"), str(runs / "frozen")]) == 0
    assert "report-comparison.html" in capsys.readouterr().out
    assert "2 runs on flowers" in (tmp_path / "report-comparison.html").read_text("utf-8")
