"""A run's report: complete, self-contained, escaped, and written whatever is missing."""

import html
import json
import os
import re
import shutil

import numpy as np
import pytest
from support.evaluated_run import cross_validated, evaluated
from support.page import Page
from support.scenes import fill
from support.tiny_run import CLASSES, make_images

from vggjax.errors import ConfigError
from vggjax.evaluation import metrics
from vggjax.evaluation.evaluate import print_summary
from vggjax.report.facts import describe_stages, stage_starts
from vggjax.report.figures import MAX_NUMBERED
from vggjax.report.report import write_report
from vggjax.report.run_files import best_epoch, epoch_records, mean_epochs
from vggjax.report.sections import MAX_EXAMINED_BYTES, MAX_MISTAKES


def report(workdir, **options):
    return Page(write_report(workdir, **options).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("flowers") / "flowers")


@pytest.fixture(scope="module")
def written(tmp_path_factory, flowers):
    """A run and its page, for tests that change neither."""
    folder = tmp_path_factory.mktemp("run") / "my run"
    run = evaluated(folder, flowers, unreadable=[("a<b>\n.jpg", "truncated")])
    return run, report(run)


@pytest.fixture
def run(tmp_path):
    return evaluated(tmp_path / "run", make_images(tmp_path / "flowers"))


def test_the_page_needs_no_other_file_no_network_and_no_script(written):
    _, page = written
    assert page.addresses and all(re.match("data:image/|#", text) for text in page.addresses)
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://|@import|url\((?!#)", page.html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(ids)


def test_the_page_shows_the_metrics_of_the_evaluation(written):
    run, page = written
    result = json.loads((run / "eval.json").read_text())
    low, high = result["accuracy_interval"]
    assert f"{result['accuracy']:.1%} accuracy; 95% interval {low:.1%} to {high:.1%}" in (
        page.words.replace("\xa0", " ")
    )
    for row in result["per_class"]:
        figures = " ".join(f"{row[key]:.1%}" for key in ("precision", "recall", "f1"))
        assert f"{row['name']} {figures} {row['support']}" in page.words
    support = {row["name"]: row["support"] for row in result["per_class"]}
    for truth, guess, count in metrics.most_confused(result, result["class_names"]):
        assert f"{count} of {support[truth]} {truth} predicted as {guess}" in page.words
    cells = re.findall(r"<td[^>]*>(\d+)(?:<small>\d+%</small>)?</td>", page.section("confusion"))
    assert list(map(int, cells)) == np.ravel(result["confusion"]).tolist()


def test_the_navigation_has_the_headings_words_and_the_row_of_figures_six(written):
    _, page = written
    links = re.findall(r'<a href="#([\w-]+)">(.*?)</a>', page.html)
    assert len(links) > 8
    for anchor, text in links:
        assert re.search(rf'id="{anchor}".*?<h2>{text}\b', page.html, re.DOTALL), text
    tiles = re.search(r'<ul class="tiles">(.*?)</ul>', page.html, re.DOTALL)
    assert tiles and 4 <= tiles[1].count("<li>") <= 6


def test_class_and_file_names_are_shown_literally(written):
    _, page = written
    assert "i" not in {tag for tag, _ in page.tags}
    assert all(name in page.text for name in CLASSES)
    assert html.escape("<i>rose & co/") in page.html


def test_the_most_confident_mistakes_come_first_each_with_its_image(written):
    _, page = written
    gallery = page.section("mistakes")
    shares = [float(share) for share in re.findall(r"predicted <b>.*?</b> ([\d.]+)%", gallery)]
    assert shares == sorted(shares, reverse=True) and len(shares) == 6
    assert gallery.count("data:image/jpeg") == 6
    assert page.section("pairs").count("data:image/jpeg") == 6


@pytest.mark.parametrize("write", [evaluated, cross_validated], ids=["run", "folds"])
@pytest.mark.parametrize("duplicates", [{}, {"exact": 3, "near": 1, "leaked": 2}])
@pytest.mark.parametrize("data", ["examined", "large", "gone"])
def test_the_page_is_written_for_every_state_of_the_data(tmp_path, write, duplicates, data):
    flowers = make_images(tmp_path / "flowers", each=5)
    if data == "large":
        first = next(flowers.rglob("*.png"))
        os.truncate(first, MAX_EXAMINED_BYTES + 1)  # zeros after the image, which readers skip
    run = write(tmp_path / "run", flowers, duplicates=duplicates)
    if data == "gone":
        shutil.rmtree(flowers)
    page = report(run)
    quality = " ".join(page.section("data").split())
    assert ("Not every image was examined" in quality) == (data == "large")
    assert ("could not be examined" in quality) == (data == "gone")
    assert ("vggjax doctor" in quality) == (data != "gone")
    if data == "large":
        assert (
            "3 exact duplicates and 1 near-duplicate" if duplicates else "none known"
        ) in quality
    assert ("Folds" in page.words) == (write is cross_validated)


def test_too_many_classes_have_no_matrix(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "MAX_MATRIX", 2)
    images = make_images(tmp_path / "x", ("a", "b", "c"), each=3)
    page = report(evaluated(tmp_path / "run", images))
    section = page.section("confusion")
    assert "3 classes are too many for a matrix" in section and "<table" not in section
    assert "predicted as" in page.words
    assert not (tmp_path / "run" / "plots" / "confusion.png").exists()


@pytest.mark.parametrize(("classes", "epochs"), [(2, 0), (2, 1), (25, 2)])
def test_few_epochs_and_few_or_many_classes_make_a_page(tmp_path, classes, epochs):
    names = [f"kind {i}" for i in range(classes)]
    page = report(
        evaluated(tmp_path / "run", make_images(tmp_path / "x", names, each=3), epochs=epochs)
    )
    assert ("Training curves" in page.words) == (epochs > 0)
    assert ('<table class="matrix' in page.html) == (classes <= MAX_NUMBERED)
    assert ("<svg" in page.section("confusion")) == (classes > MAX_NUMBERED)
    assert all(name in page.text for name in names)


def test_a_class_missing_from_the_test_split_has_no_scores_and_is_left_out_of_the_macro(
    tmp_path, capsys
):
    fill(tmp_path / "turns" / "train", "0", "90", "180", "270", count=8)
    fill(tmp_path / "turns" / "test", "0", "90", "270", seed=99)
    run = evaluated(tmp_path / "run", tmp_path / "turns")
    result = json.loads((run / "eval.json").read_text())
    scores = {row.pop("name"): row for row in result["per_class"]}
    assert {name: row["support"] for name, row in scores.items()} == {
        "0": 4, "180": 0, "270": 4, "90": 4
    }  # fmt: skip
    recalls = [row["recall"] for row in scores.values() if row["support"]]
    assert result["macro"]["recall"] == pytest.approx(np.mean(recalls))
    assert "180 - - - 0" in report(run).words
    print_summary(json.loads((run / "eval.json").read_text()))
    assert capsys.readouterr().out.split("\n")[-2].split() == ["180", "-", "-", "-", "0"]


def test_the_gallery_is_limited(tmp_path):
    images = make_images(tmp_path / "flowers", each=40)
    page = report(evaluated(tmp_path / "run", images, share_wrong=1.0))
    assert page.section("mistakes").count("data:image/jpeg") == MAX_MISTAKES
    assert f"The {MAX_MISTAKES} most confident of 48 mistakes" in page.words


def test_a_run_without_mistakes_says_so_and_keeps_no_old_gallery(tmp_path, flowers):
    run = evaluated(tmp_path / "run", flowers, share_wrong=0)
    (run / "plots").mkdir()
    (run / "plots" / "mistakes.png").write_bytes(b"old")
    page = report(run)
    assert "None: every test image was classified correctly." in page.words
    assert "Most confused pairs" not in page.words
    assert not (run / "plots" / "mistakes.png").exists()


def test_images_that_were_left_out_are_listed_and_paths_can_be_pasted(written):
    run, page = written
    assert "1 image could not be read" in page.words
    assert r"a<b>\n.jpg: truncated" in page.words
    assert f"vggjax predict PHOTO.jpg --workdir '{run}'" in page.text


def test_a_gone_dataset_and_unreadable_images_leave_their_places_empty(run, tmp_path):
    for path in (tmp_path / "flowers").rglob("*.png"):
        path.write_bytes(b"x" * path.stat().st_size)
    page = report(run)
    assert page.words.count("readable now") == 6
    shutil.rmtree(tmp_path / "flowers")
    gone = report(run)
    assert "The images cannot be shown." in gone.words
    assert gone.words.count("predicted as") == page.words.count("predicted as")
    for text in (page, gone):
        assert not any(address.startswith("data:image/jpeg") for address in text.addresses)


def test_a_run_that_was_not_evaluated_is_refused_with_the_command(run):
    (run / "eval.json").unlink()
    with pytest.raises(ConfigError, match=r"vggjax evaluate --workdir .*run"):
        write_report(run)
    with pytest.raises(ConfigError, match="not a run folder"):
        write_report(run / "plots")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("predictions.csv", "id,split\n1,2\n"),
        ("predictions.csv", "id,truth,guess,probability,truth_probability,correct\na,b,c,2,0,1\n"),
        ("eval.json", "{"),
    ],
)
def test_damaged_results_are_refused(run, name, text):
    (run / name).write_text(text)
    with pytest.raises(ConfigError, match=f"{name} is .*damaged.*evaluate the run again"):
        write_report(run)


def test_of_a_repeated_epoch_the_last_record_counts():
    log = [{"kind": "epoch", "epoch": e, "val/loss": v} for e, v in [(2, 0.9), (1, 1), (2, 0.5)]]
    rows = epoch_records([*log, {"kind": "test", "epoch": 9}])
    assert [(row["epoch"], row["val/loss"]) for row in rows] == [(1, 1), (2, 0.5)]


def test_a_stage_begins_halfway_between_its_first_epoch_and_the_one_before():
    stages = ["head", "head", "head+block5", "head+block5+block4"]
    rows = [{"epoch": 2 * e, "stage": stage} for e, stage in enumerate(stages)]
    assert stage_starts(rows) == [(3, "block5"), (5, "block4")]
    assert describe_stages(rows)[:2] == ["head only: epochs 0 to 2", "head and block5: epoch 4"]


def test_epochs_of_several_runs_are_averaged_over_those_that_reached_them():
    runs = [[{"epoch": 1, "x": 1.0}, {"epoch": 2, "x": 5.0}], [{"epoch": 1, "x": 2.0}]]
    assert mean_epochs(runs) == [{"epoch": 1, "x": 1.5}, {"epoch": 2, "x": 5.0}]


def test_the_best_epoch_is_the_first_of_the_best_values():
    rows = [{"epoch": e, "m/loss": v, "m/accuracy": v} for e, v in enumerate([3, 1, 1, 3, 2])]
    assert best_epoch(rows, "m/loss") == 1
    assert best_epoch(rows, "m/accuracy") == 0
    assert best_epoch([{"epoch": 7, "m/loss": float("nan")}], "m/loss") is None
    logged = [row | {"is_best": row["epoch"] in (0, 3)} for row in rows]
    assert best_epoch(logged, "m/accuracy") == 3  # as accurate, with a lower loss
    assert best_epoch([], "m/loss") is None
