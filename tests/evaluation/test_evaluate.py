"""Evaluation: its figures are those of the images one by one, and its files agree with them."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from support.pixels import jit_quickly
from support.tiny_run import CLASSES, PASS_RTOL, make_images, make_run

from vggjax.data.images.preprocess import preprocess, resize_image
from vggjax.data.sources.open import open_source
from vggjax.data.splits.splits import make_splits, parse_split
from vggjax.errors import ConfigError, DataError, VggjaxError, WeightsError
from vggjax.evaluation.evaluate import (
    MAX_ROWS,
    SplitPredictions,
    evaluate,
    predictions_csv,
    print_summary,
    read_probabilities,
)
from vggjax.evaluation.metrics import summarize
from vggjax.evaluation.predict import load_run
from vggjax.models.params import extract
from vggjax.report.report import write_report
from vggjax.training.config import read_config
from vggjax.training.run_dir.checked_json import read_json, write_json
from vggjax.training.run_dir.folder import lock_workdir
from vggjax.training.run_dir.run_result import load_model, load_run_result, save_model


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Return a run that was evaluated on its test split; no test may change it."""
    root = tmp_path_factory.mktemp("evaluated")
    run = make_run(root / "run", make_images(root / "flowers"))
    evaluate(run)
    return run


@pytest.fixture
def run(evaluated, tmp_path):
    """Return a copy of the run that was not evaluated, with a copy of its dataset."""
    images = shutil.copytree(read_config(evaluated).dataset, tmp_path / "flowers")
    run = shutil.copytree(evaluated, tmp_path / "run")
    for name in ("eval.json", "predictions.csv", "probabilities.npz"):
        (run / name).unlink()
    config = read_json(run / "config.json")
    write_json(run / "config.json", config | {"dataset": str(images)})
    return run


def predict_one_by_one(run, split):
    """Return ids, probabilities and labels of a split without any of evaluate's code."""
    config, (model, info) = read_config(run), load_model(run)
    source = open_source(config.dataset)
    indices = make_splits(source, parse_split(config.split), config.seed)[split]
    forward = jit_quickly(lambda images: model(preprocess(images, info.preprocessing.mode)))
    probs = []
    for i in indices:
        image = resize_image(source.read(int(i)).pixels, info.preprocessing)
        logits = np.asarray(forward(image[None]), np.float64)[0]
        if len(logits) == 1:
            share = 1 / (1 + np.exp(-logits[0]))
            probs.append([1 - share, share])
        else:
            probs.append(np.exp(logits) / np.exp(logits).sum())
    return [source.ids[i] for i in indices], np.array(probs, np.float32), source.labels[indices]


def assert_same_figures(result, expected):
    assert result["confusion"] == expected["confusion"]
    for key in ("num_examples", "loss", "accuracy", "accuracy_interval"):
        assert result[key] == pytest.approx(expected[key], rel=PASS_RTOL)


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_figures_and_files_are_those_of_the_images_one_by_one(evaluated):
    ids, probs, labels = predict_one_by_one(evaluated, "test")
    result = json.loads((evaluated / "eval.json").read_text())
    assert result["split"] == "test" and result["class_names"] == sorted(CLASSES)
    assert_same_figures(result, summarize(probs, labels, CLASSES))
    kept = read_probabilities(evaluated, "test", num_classes=3)
    np.testing.assert_allclose(kept.probs, probs, rtol=PASS_RTOL)
    np.testing.assert_array_equal(kept.labels, labels)
    rows = read_csv(evaluated / "predictions.csv")
    assert [row["id"] for row in rows] == ids
    assert [row["truth"] for row in rows] == [result["class_names"][i] for i in labels]


def test_predictions_csv_is_the_kept_probabilities_in_six_digits(evaluated):
    result = json.loads((evaluated / "eval.json").read_text())
    _, labels, probs = read_probabilities(evaluated, "test", num_classes=3)
    rows = read_csv(evaluated / "predictions.csv")
    assert [row["guess"] for row in rows] == [result["class_names"][i] for i in probs.argmax(1)]
    written = {
        name: [float(row[name]) for row in rows] for name in ("probability", "truth_probability")
    }
    half_digit = 0.5e-6 * (1 + 1e-6)
    np.testing.assert_allclose(written["probability"], probs.max(1), rtol=0, atol=half_digit)
    of_label = probs[np.arange(len(labels)), labels]
    np.testing.assert_allclose(written["truth_probability"], of_label, rtol=0, atol=half_digit)
    assert np.mean([int(row["correct"]) for row in rows]) == result["accuracy"]


def test_one_sigmoid_unit_is_evaluated_as_two_classes(tmp_path):
    images = make_images(tmp_path / "pets", ("cat", "dog"))
    run = make_run(tmp_path / "run", images, head="gap-1")
    _, probs, labels = predict_one_by_one(run, "test")
    assert_same_figures(evaluate(run), summarize(probs, labels, ("cat", "dog")))


def test_neither_the_batch_size_nor_a_run_in_memory_changes_a_figure(run, evaluated):
    result = load_run_result(run, strict=True)
    for name in ("model.safetensors", "config.json", "data.json"):
        (run / name).unlink()  # nothing is read a second time
    expected = json.loads((evaluated / "eval.json").read_text())
    assert_same_figures(evaluate(result, batch_size=5), expected)
    assert {"eval.json", "predictions.csv", "probabilities.npz"} <= set(os.listdir(run))


def test_another_split_has_its_own_files(run):
    before = set(os.listdir(run))
    result = evaluate(run, split="val")
    names = {"eval-val.json", "predictions-val.csv", "probabilities-val.npz"}
    assert set(os.listdir(run)) - before == names
    assert read_json(run / "eval-val.json") == result
    assert_same_figures(result, summarize(*predict_one_by_one(run, "val")[1:], CLASSES))


def test_an_unreadable_image_is_named_and_in_no_figure(run, evaluated):
    before = json.loads((evaluated / "eval.json").read_text())
    name = read_csv(evaluated / "predictions.csv")[0]["id"]
    path = open_source(read_config(run).dataset).root / name
    path.write_bytes(b"x" * path.stat().st_size)  # the same size: still the same dataset
    result = evaluate(run)
    assert result["unreadable"] == {name: "not an image"}
    assert result["num_examples"] == before["num_examples"] - 1
    assert name not in [row["id"] for row in read_csv(run / "predictions.csv")]


def test_a_changed_or_missing_dataset_is_refused(run):
    root = open_source(read_config(run).dataset).root
    shutil.copy(root / "daisy" / "00.png", root / "daisy" / "new.png")
    with pytest.raises(DataError, match="not the one that"):
        evaluate(run)
    shutil.rmtree(root)
    with pytest.raises(DataError):
        evaluate(load_run_result(run))
    assert not (run / "eval.json").exists()


def test_a_run_folder_without_its_parts_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="not a run folder"):
        evaluate(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="split.*Did you mean 'test'"):
        evaluate(run, split="tets")
    with pytest.raises(ConfigError, match="`batch_size` must be above 0; got 0"):
        evaluate(run, batch_size=0)
    data = (run / "data.json").read_text()
    (run / "data.json").write_text(data[:20])
    with pytest.raises(ConfigError, match=r"data\.json is damaged"):
        evaluate(run)
    (run / "data.json").write_text(data)
    (run / "model.safetensors").unlink()
    with pytest.raises(VggjaxError, match="model.safetensors"):
        evaluate(run)
    (run / "model.json").unlink()
    with pytest.raises(WeightsError, match="no finished model"):
        evaluate(run)


def test_a_cross_validation_is_refused_with_the_folders_of_its_folds(run):
    config = read_json(run / "config.json")
    write_json(run / "config.json", config | {"cross_validate": 3})
    with pytest.raises(ConfigError, match="is a cross-validation.*fold"):
        evaluate(run)


def test_a_model_whose_outputs_are_not_finite_is_refused(run):
    model, info = load_model(run)
    kernel = extract(model)["predictions"]["kernel"]
    model.predictions.kernel.set_value(np.full_like(kernel, 3e38))  # finite, its sums are not
    save_model(run, model, info)
    with pytest.raises(DataError, match="NaN"):
        evaluate(run)
    assert not (run / "eval.json").exists()


def test_more_than_five_classes_have_their_five_best_in_the_predictions():
    rng = np.random.default_rng(0)
    names = [f"class{i}" for i in range(7)]
    probs = rng.dirichlet(np.ones(7), 40).astype(np.float32)
    predictions = SplitPredictions(np.arange(40), rng.integers(0, 7, 40), probs)
    text = predictions_csv(predictions, "test", ids=[str(i) for i in range(40)], class_names=names)
    rows = list(csv.DictReader(text.splitlines()))
    hits = [row["truth"] in row["top5"].split("; ") for row in rows]
    assert np.mean(hits) == summarize(probs, predictions.labels, names)["top5"]
    assert all(row["top5"].split("; ")[0] == row["guess"] for row in rows)


def test_the_printed_table_is_short_and_starts_with_the_lowest_f1(capsys):
    names = [f"[bold]{i}[/]" for i in range(50)]
    labels = np.repeat(np.arange(50), 2)
    probs = np.eye(50, dtype=np.float32)[labels]
    probs[[80, 81]] = probs[0]  # class 40 is never predicted
    print_summary({"split": "test", "unreadable": {}, **summarize(probs, labels, names)})
    lines = capsys.readouterr().out.splitlines()
    assert "98.0% of 100 test images" in lines[0]
    first_two = [line.split()[0] for line in lines if "[bold]" in line][:2]
    assert first_two == ["[bold]40[/]", "[bold]0[/]"]
    assert sum("[bold]" in line for line in lines) == MAX_ROWS
    assert lines[-1] == "... 30 more, none worse"  # like the last one shown, they are at 100 %


def test_one_command_at_a_time_writes_results_and_predict_may_read(run):
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    message = r"run is in use by a training \(process \d+ on .*, since [\d:]+\)\. Wait until"
    with lock_workdir(run, "a training"):
        for command in (evaluate, write_report):
            with pytest.raises(ConfigError, match=message):
                command(run)
        assert set(load_run(run).class_names) == set(CLASSES)
    assert {path: path.read_bytes() for path in before} == before
    evaluate(run)


def test_a_folder_without_a_run_gets_no_lock(tmp_path):
    for command in (evaluate, write_report):
        with pytest.raises(ConfigError, match="is not a run folder"):
            command(tmp_path)
    assert not list(tmp_path.iterdir())
