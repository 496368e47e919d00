"""A run with several labels per image from its evaluation on: pages, predictions, folds."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from support.multilabel import LABELS, make_squares
from support.page import Page
from support.tiny_run import make_run

import vggjax
from vggjax.cli.main import main
from vggjax.errors import ConfigError
from vggjax.evaluation.evaluate import evaluate, pool_folds, read_probabilities
from vggjax.evaluation.multilabel import COLUMNS
from vggjax.report.compare import write_comparison
from vggjax.report.report import write_report
from vggjax.training.config import Config, read_config
from vggjax.training.run_dir.checked_json import read_json, write_json
from vggjax.training.run_dir.run_result import load_run_result


def write_log(workdir):
    row = {"kind": "epoch", "step": 5, "epoch": 1, "stage": "head", "seconds": 1.0}
    row |= {"images_per_s": 9.0, "val/thresholds": [0.5] * 3}
    row |= dict.fromkeys(("train/loss", "train/f1", "val/loss", "val/f1", "val/mAP"), 0.5)
    (workdir / "log.jsonl").write_text(json.dumps(row) + "\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An evaluated run of a random network on 60 images."""
    root = tmp_path_factory.mktemp("run")
    dataset = make_squares(root / "squares")
    workdir = make_run(root / "run", dataset, task="multilabel", label_separator="|")
    write_log(workdir)
    evaluate(workdir)
    return workdir


@pytest.fixture(scope="module")
def page(run):
    return Page(write_report(run).read_text(encoding="utf-8"))


def read_rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_have_the_labels_and_a_probability_for_each_class(run):
    rows, test = read_rows(run / "predictions.csv"), read_probabilities(run, "test", num_classes=3)
    assert tuple(rows[0])[: len(COLUMNS)] == COLUMNS and tuple(rows[0])[len(COLUMNS) :] == LABELS
    source = load_run_result(run).source
    for row, index, probs in zip(rows, test.index, test.probs, strict=True):
        assert row["truth"] == source.label_text(int(index))
        guess = [name for name, prob in zip(LABELS, probs, strict=True) if prob >= 0.5]
        assert row["guess"] == "|".join(guess)
        np.testing.assert_allclose([float(row[name]) for name in LABELS], probs, atol=1e-6)
        wrong = {*row["truth"].split("|"), *[""]} ^ {*guess, ""}
        assert {*row["missing"].split("|"), *row["extra"].split("|"), ""} == wrong | {""}


def test_the_page_shows_map_thresholds_and_co_occurrence(run, page):
    result = json.loads((run / "eval.json").read_text())
    assert f"{result['mAP']:.1%} mAP; 95% interval" in page.words.replace("\xa0", " ")
    for row in result["per_class"]:
        for key in ("average_precision", "f1", "threshold"):
            assert f"{row[key]:.1%}" in page.section("classes")
    section = page.section("cooccurrence")
    assert f">{result['cooccurrence'][0][1]}<small>" in section
    assert not page.section("confusion") and not page.section("calibration")
    assert "it is measured only where each image has one label" in page.words


def test_the_page_shows_wrong_labels_and_maps_of_predicted_ones(run, page):
    wrong = [row for row in read_rows(run / "predictions.csv") if row["correct"] == "0"]
    worst = max(wrong, key=lambda row: float(row["loss"]))
    section = page.section("mistakes")
    shown = [row["id"] for row in wrong if f"<small>{row['id']}</small>" in section]
    assert len(shown) == 12 and min(shown, key=section.index) == worst["id"]
    for kind in ("missing", "extra"):
        if worst[kind]:
            assert f"{kind} <b>{worst[kind].replace('|', ', ')}</b>" in section
    maps = page.section("grad-cam")
    assert any(f"<small>for {name}</small>" in maps for name in LABELS)
    assert (run / "plots" / "mistakes.png").exists() and page.section("labels")


def test_the_screen_names_the_labels_above_their_thresholds(run, capsys, tmp_path):
    row = read_rows(run / "predictions.csv")[0]
    image = run.parent / "squares" / row["id"]
    probs = vggjax.load_run(str(run)).predict(image)
    np.testing.assert_allclose(probs.probs[0], [float(row[name]) for name in LABELS], rtol=1e-3)
    expected = [name for name, p in zip(LABELS, probs.probs[0], strict=True) if p >= 0.5]
    assert probs.names == ["|".join(expected)] and probs.labels.shape == (1, 3)
    out = str(tmp_path / "out.csv")
    assert main(["predict", str(image), "--workdir", str(run), "--csv", out]) == 0
    assert read_rows(out)[0]["labels"] == "|".join(expected)
    text = capsys.readouterr().out
    assert all(f"{name} {p:.1%}" in text for name, p in zip(LABELS, probs.probs[0], strict=True))
    assert main(["predict", str(image), "--workdir", str(run), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert sorted(record["labels"]) == expected and "class" not in record
    # A second call adds a row to those that are there.
    others = [str(image), str(image.with_name("003.png")), "--workdir", str(run), "--csv", out]
    assert main(["predict", *others]) == 0 and len(read_rows(out)) == 2
    assert main(["predict", *others[:4], "--sort-into", str(tmp_path / "sorted")]) == 2
    assert "several labels per image" in capsys.readouterr().err


def test_runs_are_compared_by_map_and_only_with_their_like(run, tmp_path):
    other = make_run(
        tmp_path / "other", run.parent / "squares" / "labels.csv", task="multilabel", seed=0,
        label_separator="|", label_smoothing=0.1,
    )  # fmt: skip
    write_log(other)
    evaluate(other)
    text = Page(write_comparison([run, other], tmp_path / "c.html").read_text("utf-8"))
    assert "best mAP" in text.words and "no significant difference" in text.words
    settings = read_json(other / "config.json") | {"task": "multiclass"}
    settings["label_separator"] = None
    write_json(other / "config.json", settings)
    counts = read_json(other / "eval.json")["cooccurrence"]
    invented = {"accuracy_interval": [0, 1], "confusion": counts}
    evaluation = read_json(other / "eval.json") | invented
    write_json(other / "eval.json", evaluation)
    with pytest.raises(ConfigError, match="Runs with different tasks cannot be compared"):
        write_comparison([run, other], tmp_path / "d.html")


def test_other_images_with_some_of_the_labels_are_evaluated(run, tmp_path, capsys):
    other = make_squares(tmp_path / "other", 20)
    other.write_text(other.read_text().replace("blue", "white"))
    assert main(["evaluate", "--workdir", str(run), "--dataset", str(other)]) == 0
    text = capsys.readouterr().out
    assert "classes that the model does not have: 'white'" in text
    assert "20 images are evaluated as images that the model has not seen" in text
    (result,) = (run / "evaluations").glob("*/eval.json")
    blue, green, _ = json.loads(result.read_text())["per_class"]
    assert blue["support"] == 0 and green["support"] > 0
    shutil.rmtree(run / "evaluations")


def test_folds_are_pooled_with_the_thresholds_of_their_own_models(run, tmp_path):
    for fold in ("fold-1", "fold-2"):
        shutil.copytree(run, tmp_path / fold)
    config = dataclasses.replace(read_config(run), cross_validate=2)
    (tmp_path / "config.json").write_text(config.to_json())
    shutil.copy(run / "data.json", tmp_path)
    pooled, single = pool_folds(tmp_path, config), json.loads((run / "eval.json").read_text())
    assert pooled["num_examples"] == 2 * single["num_examples"]
    for key in ("mAP", "loss", "exact_match", "macro", "micro"):
        assert pooled[key] == pytest.approx(single[key])
    assert [fold["mAP"] for fold in pooled["folds"]] == [single["mAP"]] * 2
    page = Page(write_report(tmp_path).read_text("utf-8"))
    assert (
        f"{single['mAP']:.1%}" in page.section("folds") and "the mean over the folds" in page.words
    )


def test_a_config_of_an_older_version_is_multiclass(tmp_path):
    old = json.loads(Config().to_json())
    del old["task"]
    assert Config.from_json(json.dumps(old | {"monitor": "val/accuracy"})).task == "multiclass"
