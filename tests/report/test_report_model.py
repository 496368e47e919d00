"""The sections of a report that need the model: what it says of its splits, and where it looks."""

import json
import re
import shutil

import numpy as np
import pytest
from support.tiny_run import make_images, make_run

from vggjax.data.images.preprocess import preprocess
from vggjax.errors import printable
from vggjax.evaluation import evaluate as evaluate_file
from vggjax.evaluation.evaluate import evaluate
from vggjax.evaluation.probabilities import (
    SplitPredictions,
    read_probabilities,
    write_probabilities,
)
from vggjax.report import model_views
from vggjax.report.data_quality import MAX_IMAGES, describe_health
from vggjax.report.report import write_report
from vggjax.training import recipes
from vggjax.training.config import read_config
from vggjax.training.run_dir.run_result import open_training_data
from vggjax.training.run_dir.saved_model import load_model

PNGS = {"curves", "confusion", "reliability", "mistakes", "gradcam", "augmentation"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A judged run with every section on its page."""
    folder = tmp_path_factory.mktemp("whole")
    run = make_run(folder / "run", make_images(folder / "flowers"), split="0.3,0.3,0.4")
    evaluate(run)
    write_report(run)
    return run


def section(run, anchor):
    text = (run / "report.html").read_text(encoding="utf-8")
    found = re.search(f'<section id="{anchor}">.*?</section>', text, re.S)
    return found[0] if found else ""


def test_a_page_of_a_whole_run_has_every_section_and_its_images(whole):
    text = (whole / "report.html").read_text(encoding="utf-8")
    for anchor in (
        "confusion",
        "classes",
        "calibration",
        "labels",
        "looks",
        "augmentation",
        "data",
    ):
        assert section(whole, anchor), anchor
        assert f'href="#{anchor}"' in text
    assert {path.stem for path in (whole / "plots").iterdir()} == PNGS
    assert len(text) < 3_000_000


def test_the_temperature_is_fitted_on_validation_which_is_judged_once_and_kept(whole, monkeypatch):
    kept = read_probabilities(whole, "val", num_classes=3)
    assert len(kept.labels) == 9 and kept.probs.shape == (9, 3)
    assert "fitted on 9 validation images" in section(whole, "calibration")

    def judge(*_, **__):
        raise AssertionError("judged again")

    monkeypatch.setattr(evaluate_file, "run_model", judge)
    write_report(whole)


def test_what_is_kept_is_what_the_model_says(whole):
    kept = read_probabilities(whole, "test", num_classes=3)
    result = json.loads((whole / "eval.json").read_text())
    assert (kept.probs.argmax(1) == kept.labels).mean() == pytest.approx(result["accuracy"])
    np.testing.assert_allclose(kept.probs.sum(1), 1, rtol=1e-5)


def test_damaged_probabilities_are_none(tmp_path):
    rows = SplitPredictions(np.arange(2), np.zeros(2, int), np.full((2, 3), 1 / 3))
    write_probabilities(tmp_path, "val", rows)
    assert read_probabilities(tmp_path, "val", num_classes=3) is not None
    assert read_probabilities(tmp_path, "val", num_classes=4) is None
    assert read_probabilities(tmp_path, "test", num_classes=3) is None
    (tmp_path / "probabilities-val.npz").write_bytes(b"PK\x03\x04 and no more")
    assert read_probabilities(tmp_path, "val", num_classes=3) is None


def test_without_its_model_or_its_data_a_run_still_has_a_page(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "run")
    (copy / "model.safetensors").write_bytes(b"")
    write_report(copy)
    assert section(copy, "calibration") and not section(copy, "looks")
    assert not (copy / "plots" / "gradcam.png").exists()
    for name in ("probabilities.npz", "probabilities-val.npz"):
        (copy / name).unlink()
    write_report(copy)
    assert "No temperature was fitted" in section(copy, "calibration")
    assert not section(copy, "labels")


@pytest.mark.slow
def test_one_unit_for_two_classes_has_its_maps_too(tmp_path):
    images = make_images(tmp_path / "two", ("a", "b"), each=6)
    run = make_run(tmp_path / "run", images, head="gap-1", augment="none")
    evaluate(run)
    write_report(run)
    assert "for a" in section(run, "looks")
    assert not section(run, "augmentation")


def test_the_maps_are_of_the_surest_guesses_right_and_wrong(whole, monkeypatch):
    model, info = load_model(whole)
    source = open_training_data(whole, read_config(whole))
    judged = read_probabilities(whole, "test", num_classes=3)
    looks, layer, side = model_views.draw_grad_cam_examples(model, info, source, judged)
    assert (layer, side) == ("block3_conv2", 8)
    right = [look for look in looks if look.right]
    assert all(look.for_truth is None for look in right)
    assert len({look.guess for look in right[:3]}) == len({look.truth for look in right[:3]})
    for look in looks:
        at = [printable(id) for id in source.ids].index(look.id)
        image = model_views.resize_image(source.read(at).pixels, info.preprocessing)
        logits = np.asarray(model(preprocess(image[None], info.preprocessing.mode)))[0]
        assert look.guess == printable(info.class_names[logits.argmax()])
        assert (look.guess == look.truth) == look.right


def test_the_doctor_looks_at_small_data_sets_by_itself_and_at_large_ones_when_asked(
    whole, monkeypatch
):
    config = read_config(whole)
    source = open_training_data(whole, config)
    assert describe_health(config, source)["looked"]
    monkeypatch.setattr("vggjax.report.data_quality.MAX_IMAGES", len(source) - 1)
    assert not describe_health(config, source)["looked"]
    assert describe_health(config, source, ask=True)["looked"]
    monkeypatch.setattr("vggjax.report.data_quality.MAX_IMAGES", MAX_IMAGES)
    monkeypatch.setattr("vggjax.report.data_quality.MAX_BYTES", 1000)
    assert not describe_health(config, source)["looked"]


def test_a_collapse_is_marked_and_told(whole, tmp_path, monkeypatch):
    copy = shutil.copytree(whole, tmp_path / "run")
    epochs = [
        {"kind": "epoch", "step": e, "epoch": e, "stage": "head+all", "val/loss": 1.1,
         "val/accuracy": 0.33, "train/loss": 1.1, "train/accuracy": 0.3}
        for e in (1, 2)
    ]  # fmt: skip
    line = {
        "kind": "collapse",
        "step": 2,
        "epoch": 2,
        "stage": "head+all",
        "reason": "At <chance>.",
    }
    lines = [*epochs, line | {"advice": "Try --clip-norm 1", "action": "warned"}]
    (copy / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(copy)
    told = section(copy, "curves")
    assert (
        "Collapse in epoch 2." in told
        and "At &lt;chance&gt;. Try --clip-norm 1. What was done: warned." in told
    )
    assert told.count('class="mark collapse"') >= 2


def test_a_recipes_lesson_comes_first_and_is_escaped(whole, monkeypatch):
    class Lesson:
        title, teaches, source, figure = "Frozen <first>", "Why & how.", "a book", "85.4 %"

    monkeypatch.setattr(recipes, "lesson_of", lambda config: Lesson)
    write_report(whole)
    text = (whole / "report.html").read_text(encoding="utf-8")
    assert "Frozen &lt;first&gt;" in text and "Its author&#39;s figure" not in text
    assert text.index('id="lesson"') < text.index('id="what"')
    monkeypatch.setattr(recipes, "lesson_of", lambda config: None)
    write_report(whole)
    assert 'id="lesson"' not in (whole / "report.html").read_text(encoding="utf-8")
