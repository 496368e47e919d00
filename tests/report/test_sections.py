"""Sections of a report that need the model or the dataset: calibration, Grad-CAM, data quality."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from support.evaluated_run import epochs_log
from support.page import Page
from support.tiny_run import make_images, make_run

from vggjax.data.images.preprocess import preprocess, resize_image
from vggjax.data.quality import doctor
from vggjax.data.quality.duplicates import find_duplicates
from vggjax.data.sources.open import open_source
from vggjax.errors import WeightsError, printable
from vggjax.evaluation.evaluate import (
    SplitPredictions,
    evaluate,
    read_probabilities,
    write_probabilities,
)
from vggjax.evaluation.grad_cam import grad_cam, overlay
from vggjax.report.report import write_report
from vggjax.report.run_files import read_run, split_predictions
from vggjax.report.sections import (
    MAX_EXAMINED_BYTES,
    calibration,
    data_quality,
    grad_cam_examples,
)
from vggjax.training.config import Config
from vggjax.training.recipes import RECIPES
from vggjax.training.run_dir.checked_json import read_json, write_json
from vggjax.training.run_dir.run_result import RunResult, load_run_result

PNGS = {"curves", "confusion", "reliability", "mistakes", "gradcam", "augmentation"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An evaluated run with its report, for tests that change neither."""
    folder = tmp_path_factory.mktemp("whole")
    run = make_run(folder / "run", make_images(folder / "flowers"), split="0.3,0.3,0.4")
    evaluate(run)
    write_report(run)
    return run


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def page(run):
    return Page((run / "report.html").read_text(encoding="utf-8"))


def test_the_report_of_a_whole_run_has_every_section_and_figure(whole):
    text = page(whole)
    anchors = ("confusion", "classes", "calibration", "labels", "grad-cam", "augmentation", "data")
    for anchor in anchors:
        assert text.section(anchor) and f"#{anchor}" in text.addresses, anchor
    assert {path.stem for path in (whole / "plots").iterdir()} == PNGS
    assert len(text.html) < 3_000_000


def test_the_temperature_is_fitted_on_the_kept_validation_predictions(whole, copy):
    kept = read_probabilities(whole, "val", num_classes=3)
    assert len(kept.labels) == 9
    assert "fitted on 9 validation images" in page(whole).section("calibration")
    certain = kept._replace(probs=np.eye(3)[kept.labels] * 0.97 + 0.01)
    write_probabilities(copy, "val", certain)  # other predictions give another temperature
    write_report(copy)
    assert "every prediction is correct" in page(copy).section("calibration")


def test_calibration_of_a_perfect_model_needs_no_temperature(whole):
    files = read_run(whole)
    labels = np.arange(900) % 3
    probs = np.full((900, 3), 0.15)
    right = np.where(np.arange(900) < 630, labels, (labels + 1) % 3)  # 70 % correct at 0.7
    probs[np.arange(900), right] = 0.7
    predictions = SplitPredictions(np.arange(900), labels, probs)
    values = calibration(files, predictions, predictions)
    assert values["temperature"] == pytest.approx(1, abs=0.01) and not values["at_edge"]
    assert values["num_val"] == 900 and values["other"].ece == pytest.approx(0, abs=0.01)
    assert sum(values["other"].counts) == 900


def test_damaged_probabilities_are_computed_again(copy):
    before = read_probabilities(copy, "test", num_classes=3)
    for name in ("probabilities.npz", "probabilities-val.npz"):
        (copy / name).write_bytes(b"PK\x03\x04 and no more")
    write_report(copy)
    after = read_probabilities(copy, "test", num_classes=3)
    np.testing.assert_array_equal(after.index, before.index)
    np.testing.assert_allclose(after.probs, before.probs, atol=1e-5)


def test_without_its_model_a_run_still_has_a_page(copy):
    (copy / "model.safetensors").unlink()
    write_report(copy)
    assert page(copy).section("calibration") and not page(copy).section("grad-cam")
    assert not (copy / "plots" / "gradcam.png").exists()
    for name in ("probabilities.npz", "probabilities-val.npz"):
        (copy / name).unlink()
    write_report(copy)
    assert "No temperature was fitted" in page(copy).section("calibration")
    assert not page(copy).section("labels")


def test_a_run_in_memory_gives_the_page_of_its_folder_without_reading_it(whole, copy):
    result = load_run_result(whole)
    predictions = read_probabilities(whole, "test", num_classes=3)
    result = dataclasses.replace(result, workdir=copy)
    evaluation = json.loads((copy / "eval.json").read_text())
    for name in ("model.safetensors", "config.json", "probabilities.npz", "eval.json"):
        (copy / name).unlink()
    (copy / "probabilities-val.npz").unlink()
    write_report(result, evaluation=evaluation, predictions=predictions)
    assert page(copy).html.replace(str(copy), str(whole)) == page(whole).html
    files = read_run(result, evaluation=evaluation)
    computed = split_predictions(result, files, "test")  # by the model in memory
    np.testing.assert_array_equal(computed.index, predictions.index)


@pytest.mark.slow
def test_one_unit_for_two_classes_has_its_maps_too(tmp_path):
    images = make_images(tmp_path / "two", ("a", "b"), each=6)
    run = make_run(tmp_path / "run", images, head="gap-1", augment="none")
    evaluate(run)
    write_report(run)
    assert "for a" in page(run).section("grad-cam")
    assert not page(run).section("augmentation")


def test_the_maps_are_of_confident_predictions_correct_and_wrong(whole):
    run = load_run_result(whole)
    predictions = read_probabilities(whole, "test", num_classes=3)
    examples, layer, side = grad_cam_examples(run, predictions)
    assert (layer, side) == ("block3_conv2", 8)
    shown = [(example.is_correct, example.predicted, example.probability) for example in examples]
    names, predicted = [printable(n) for n in run.info.class_names], predictions.probs.argmax(1)
    for is_correct in (True, False):
        # The first example is the most confident prediction of its kind.
        of_kind = (predicted == predictions.labels) == is_correct
        row = np.flatnonzero(of_kind)[predictions.probs[of_kind].max(1).argmax()]
        best = (is_correct, names[predicted[row]], float(predictions.probs[row].max()))
        assert next(entry for entry in shown if entry[0] == is_correct) == best
    ids, preprocessing = [printable(id) for id in run.source.ids], run.info.preprocessing
    images = [run.source.read(ids.index(example.id)).pixels for example in examples]
    inputs = np.stack([resize_image(image, preprocessing) for image in images])
    inputs = preprocess(np.resize(inputs, (12, *inputs.shape[1:])), preprocessing.mode)
    truths = np.resize([names.index(example.truth) for example in examples], 12)
    maps = grad_cam(run.model, inputs, truths, layer=layer)
    for i, (example, pixels) in enumerate(zip(examples, images, strict=True)):
        row = np.flatnonzero(predictions.index == ids.index(example.id))[0]
        assert example.predicted == names[predicted[row]]
        assert example.truth == names[predictions.labels[row]]
        shown_names, shown_maps = zip(*example.maps, strict=True)
        assert shown_names == tuple(dict.fromkeys((example.predicted, example.truth)))
        expected = overlay(example.image, maps[i])
        assert abs(shown_maps[-1].astype(int) - expected).mean() < 1
        assert example.is_correct == (example.predicted == example.truth)
        # The page shows the image as it is, not squashed into a square.
        assert example.image.shape == shown_maps[0].shape
        assert example.image.shape[1] / example.image.shape[0] == pytest.approx(
            pixels.shape[1] / pixels.shape[0], abs=1 / max(pixels.shape)
        )


def test_small_datasets_are_examined_unasked_and_findings_are_sorted_by_kind(whole):
    run = load_run_result(whole)
    quality = data_quality(run)
    assert quality["examined"] and quality["command"].startswith("vggjax doctor ")
    assert not data_quality(dataclasses.replace(run, source=None))["examined"]
    for finding in quality["findings"]:
        assert finding["title"] and len(finding["lines"]) <= 3 and finding["more"] >= 0


def test_a_report_takes_over_the_duplicates_that_its_training_found(copy, monkeypatch):
    run = load_run_result(copy)
    write_report(run)
    quality = page(copy).section("data")
    searched = dataclasses.replace(run, duplicate_groups=find_duplicates(run.source))
    assert run.config.duplicates == "near"
    monkeypatch.setattr(doctor, "find_duplicates", lambda *_, **__: pytest.fail("decoded again"))
    write_report(searched)
    assert page(copy).section("data") == quality


def test_large_datasets_are_examined_only_on_request(tmp_path):
    images = make_images(tmp_path / "flowers", each=4)
    first = next(images.rglob("*.png"))
    os.truncate(first, MAX_EXAMINED_BYTES + 1)  # zeros after the image, which readers skip
    config, source = Config(dataset=str(images)), open_source(str(images))
    run = RunResult(tmp_path, config, source=source)
    assert not data_quality(run)["examined"]
    assert data_quality(run, examine_all=True)["examined"]


def test_a_small_dataset_without_files_of_its_own_is_examined(tmp_path):
    config, source = Config(duplicates="ignore"), open_source("digits")
    assert source.path(0) is None
    assert data_quality(RunResult(tmp_path, config, source=source))["examined"]


def test_a_collapse_is_marked_in_the_curves_and_explained(copy):
    collapse = {"kind": "collapse", "step": 2, "epoch": 2, "reason": "At <chance>."}
    collapse |= {"advice": "Try `clip_norm` 1", "action": "warned"}
    (copy / "log.jsonl").write_text(epochs_log(2) + json.dumps(collapse) + "\n")
    write_report(copy)
    curves = page(copy).section("curves")
    assert "Collapse in epoch 2." in curves
    assert "At &lt;chance&gt;. Try <code>clip_norm</code> 1. Action: Warned." in curves
    assert curves.count(">collapse</text>") == 2  # in both charts


def test_a_recipe_is_explained_before_the_training(copy):
    config = read_json(copy / "config.json") | {"recipe": "fruits"}
    write_json(copy / "config.json", config)
    write_report(copy)
    text, lesson = page(copy), RECIPES["fruits"]
    assert lesson.title in text.text and lesson.teaches in text.text
    assert text.html.index('id="recipe"') < text.html.index('id="training"')


def test_the_report_of_weights_with_a_flipped_bit_is_refused(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.raises(WeightsError, match="is not the file that the training wrote"):
        write_report(copy)
