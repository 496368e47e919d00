"""A run's temperature: kept only where it helps, applied everywhere, and no prediction changes."""

import dataclasses

import numpy as np
import pytest
from support.multilabel import make_squares
from support.tiny_run import make_images, make_run

import vggjax
from vggjax.evaluation.calibration import at_temperature, choose_temperature
from vggjax.evaluation.evaluate import evaluate, evaluate_split, read_probabilities
from vggjax.evaluation.temperature import calibrate
from vggjax.report.report import write_report
from vggjax.training.run_dir.checked_json import read_json, write_json
from vggjax.training.run_dir.run_result import load_run_result, read_info, write_info


def drawn(count, *, temperature, seed=0):
    """Return labels, and probabilities that are calibrated at this temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 4))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    return at_temperature(np.exp(logits), 1 / temperature).astype(np.float32), labels


def test_a_temperature_is_kept_where_it_helps_on_images_that_it_was_not_fitted_on():
    assert choose_temperature(*drawn(4000, temperature=3.0)) == pytest.approx(3, rel=0.1)
    certain = np.eye(4, dtype=np.float32)[[0, 1, 2, 3] * 5] * 0.96 + 0.01
    assert choose_temperature(certain, np.array([0, 1, 2, 3] * 5)) == 1  # nothing is ever wrong
    for seed in range(5):  # a temperature fitted on ten calibrated images is mostly noise
        chosen = choose_temperature(*drawn(10, temperature=1.0, seed=seed))
        assert chosen == 1 or 0.3 < chosen < 3
    assert choose_temperature(*drawn(1, temperature=3.0)) == 1


def test_several_labels_per_image_have_one_temperature_and_keep_their_order():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (2000, 3))
    targets = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    probs = (1 / (1 + np.exp(-2.5 * logits))).astype(np.float32)
    assert choose_temperature(probs, targets) == pytest.approx(2.5, rel=0.1)
    scaled = at_temperature(probs, 2.5, multilabel=True)
    np.testing.assert_allclose(scaled, 1 / (1 + np.exp(-logits)), atol=1e-5)
    assert np.isfinite(at_temperature(np.array([0.0, 1.0]), 0.3, multilabel=True)).all()


def overconfident(monkeypatch):
    """Let val want another temperature: twenty images are too few to tell."""
    monkeypatch.setattr("vggjax.evaluation.temperature.choose_temperature", lambda *_: 2.5)


def test_the_temperature_is_applied_everywhere_and_changes_no_prediction(tmp_path, monkeypatch):
    overconfident(monkeypatch)
    images = make_images(tmp_path / "flowers")
    run = make_run(tmp_path / "run", images)
    files = sorted(images.rglob("*.png"))
    raw, raw_evaluation = vggjax.predict(run, files), evaluate(run)
    evaluate(run, split="val")  # its probabilities are those without the temperature
    result = calibrate(load_run_result(run))
    assert read_info(run).temperature == 2.5 == result.info.temperature
    scaled, evaluation = vggjax.predict(run, files), evaluate(run)
    np.testing.assert_array_equal(scaled.labels, raw.labels)
    np.testing.assert_allclose(scaled.probs, at_temperature(raw.probs, 2.5), rtol=1e-4)
    for key in ("accuracy", "confusion", "accuracy_interval"):
        assert evaluation[key] == raw_evaluation[key]
    assert evaluation["loss"] != raw_evaluation["loss"] and evaluation["temperature"] == 2.5
    _, predictions = evaluate_split(result, "val")
    kept = read_probabilities(run, "val", num_classes=3)
    np.testing.assert_array_equal(kept.probs, predictions.probs)
    np.testing.assert_allclose(kept.probs, evaluate_split(run, "val")[1].probs, rtol=1e-4)
    page = write_report(run).read_text(encoding="utf-8")
    assert "before temperature scaling" in page and f"{raw_evaluation['loss']:.3f}" in page
    assert calibrate(load_run_result(run)).info == result.info  # it has one


def test_a_run_of_an_earlier_version_is_read_as_before(tmp_path):
    run = make_run(tmp_path / "run", make_images(tmp_path / "flowers"))
    fields = read_json(run / "model.json")
    del fields["temperature"]
    write_json(run / "model.json", fields)
    assert read_info(run).temperature is None and evaluate(run)["temperature"] is None
    page = write_report(run).read_text(encoding="utf-8")
    assert "before temperature scaling" not in page
    assert "The saved model is not changed" in page or "No temperature between" in page


def test_labels_and_thresholds_of_several_labels_move_together(tmp_path, monkeypatch):
    overconfident(monkeypatch)
    dataset = make_squares(tmp_path / "squares", 40)
    run = make_run(tmp_path / "run", dataset, task="multilabel", label_separator="|")
    info = read_info(run)
    write_info(run, dataclasses.replace(info, thresholds=(0.2, 0.5, 0.7)))
    before = evaluate(run)
    result = calibrate(load_run_result(run))
    assert result.info.thresholds == pytest.approx((0.365, 0.5, 0.584), abs=1e-3)
    after = evaluate(run)
    for key in ("exact_match", "accuracy", "mAP", "cooccurrence", "predicted_cooccurrence"):
        assert after[key] == before[key]
    assert after["loss"] != before["loss"]
