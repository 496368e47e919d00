"""Several runs on one page: the test of the difference, what differs, and what is refused."""

import csv
import io
import json

import pytest
from scipy.stats import binomtest
from support.evaluated_run import evaluated
from support.tiny_run import make_images

from vggjax.cli.main import main
from vggjax.errors import ConfigError
from vggjax.evaluation.metrics import mcnemar
from vggjax.report.compare import compare_pair, differing_settings, write_comparison
from vggjax.report.run_files import read_run
from vggjax.training.config import Config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    images = make_images(folder / "flowers")
    evaluated(folder / "frozen", images, share_wrong=0.75)
    evaluated(folder / "fine", images, share_wrong=0.25, unfreeze=("block5",), epochs=6)
    evaluated(folder / "other", make_images(folder / "two", ("a", "b")))
    evaluated(folder / "more", make_images(folder / "larger", each=12))
    return folder


def page(runs, *names, out="compare.html"):
    return write_comparison([runs / name for name in names], runs / out).read_text("utf-8")


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (1, 0), (5, 1), (3, 12), (40, 40), (90, 140)]
)
def test_mcnemars_p_is_the_exact_binomial_one(first, second):
    total = first + second
    expected = binomtest(first, total).pvalue if total else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_mcnemars_p_by_hand_and_of_very_many_images():
    assert mcnemar(0, 5) == 2 / 32
    assert 0 <= mcnemar(4000, 9000) < 1e-200


def test_two_runs_on_the_same_images_are_compared_one_by_one(runs):
    found = compare_pair(read_run(runs / "frozen"), read_run(runs / "fine"))
    mine, theirs = (
        {
            row["id"]: row["correct"]
            for row in csv.DictReader(io.StringIO((runs / n / "predictions.csv").read_text()))
        }
        for n in ("frozen", "fine")
    )
    only_fine = sum(mine[id] == "0" and theirs[id] == "1" for id in mine)
    assert found["paired"] and found["total"] == len(mine)
    assert (found["only_first"], found["only_second"]) == (0, only_fine)
    assert found["p"] == mcnemar(0, only_fine)


def test_runs_that_judged_other_images_are_not_paired(runs):
    assert compare_pair(read_run(runs / "frozen"), read_run(runs / "more")) == {"paired": False}
    text = page(runs, "frozen", "more")
    assert "did not judge the same images" in text and "different datasets" in text


def test_the_page_tells_what_differs_and_how_good_each_run_is(runs):
    text = page(runs, "frozen", "fine")
    for name in ("frozen", "fine"):
        result = json.loads((runs / name / "eval.json").read_text())
        assert f"{result['accuracy']:.1%}" in text
        low, high = result["accuracy_interval"]
        assert f"{low:.1%} to {high:.1%}" in text
    assert "<th>unfreeze</th>" in text and "<th>dataset</th>" not in text
    assert "2 min 40 s" in text and "4 min 0 s" in text
    assert text.count('<svg class="chart"') == 2
    assert "<script" not in text and "<i>rose" not in text and "&lt;i&gt;rose" in text


def test_the_same_augmentation_said_in_another_way_is_no_difference():
    by_name = Config(dataset="a", augment="flip")
    assert differing_settings([by_name, Config(dataset="a", horizontal_flip=True)]) == {}
    found = differing_settings([by_name, Config(dataset="a", augment="none", num_threads=2)])
    assert found == {"augmentation": ["flip", "none"]}


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    for place in ("a", "b"):
        evaluated(tmp_path / place / "run", runs / "flowers")
    text = write_comparison([tmp_path / p / "run" for p in "ab"], tmp_path / "c.html").read_text()
    assert ">a/run<" in text.replace("</span>", ">") and ">b/run<" in text.replace("</span>", ">")


@pytest.mark.parametrize(
    ("names", "out", "message"),
    [
        (["frozen", "other"], "c.html", "other classes cannot be compared.*a, b"),
        (["frozen", "frozen"], "c.html", "given twice"),
        (["frozen", "flowers"], "c.html", "no run folder"),
        (["frozen", "fine"], "no/c.html", "--out takes a file"),
        (["frozen", "fine"], "c.png", r"must end in \.html"),
        (["frozen"], "c.html", "--out is of several runs'"),
        ([], None, "give its folder"),
    ],
)
def test_what_cannot_be_compared_is_one_line(runs, capsys, names, out, message):
    words = [str(runs / name) for name in names]
    words += ["--out", str(runs / out)] if out else []
    assert main(["report", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("vggjax: error: ")
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(error)


def test_a_run_that_was_not_evaluated_is_refused_with_the_command(runs, tmp_path, capsys):
    run = evaluated(tmp_path / "run", runs / "flowers")
    (run / "eval.json").unlink()
    assert main(["report", str(runs / "fine"), str(run)]) == 2
    assert f"vggjax evaluate --workdir {run}" in capsys.readouterr().err


def test_the_command_writes_one_runs_report_or_the_comparison(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(runs / "fine")]) == 0
    assert (runs / "fine" / "report.html").exists()
    assert main(["report", str(runs / "fine"), str(runs / "frozen")]) == 0
    assert "report-comparison.html" in capsys.readouterr().out
    assert "2 runs on flowers" in (tmp_path / "report-comparison.html").read_text("utf-8")
