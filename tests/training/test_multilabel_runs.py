"""Training with several labels per image: the loss, whole runs, and the collapse of one."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from support.multilabel import LABELS, make_squares
from support.tiny_run import make_images
from support.training_runs import (
    assert_same_log,
    assert_same_weights,
    epochs_of,
    interrupt_at,
    make_config,
)

from vggjax.data.multilabel import choose_thresholds
from vggjax.errors import ConfigError
from vggjax.evaluation.evaluate import evaluate_split
from vggjax.models.head import Head
from vggjax.training.collapse.detector import CollapseDetector, PriorBaseline
from vggjax.training.config import Config
from vggjax.training.freezing import plan_stages
from vggjax.training.prepare import prepare_run
from vggjax.training.run_dir.run_result import read_info
from vggjax.training.signals import Interrupted
from vggjax.training.step import metric_sums
from vggjax.training.trainer import train

MULTILABEL = {"task": "multilabel", "augment": "none", "duplicates": "ignore", "batch_size": 8}


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return make_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="module")
def whole(squares, tmp_path_factory):
    """A finished run that was never interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return train(make_config(squares, workdir, **MULTILABEL, epochs=6)).workdir


def plain_loss(logits, targets):
    """Return the binary cross-entropy of each image and class, from its definition."""
    probs = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    return -(targets * np.log(probs) + (1 - targets) * np.log(1 - probs))


def make_labels(rows=8, classes=3, seed=0):
    """Return logits (N, C) and a batch with its last two rows masked."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(rows) < rows - 2).astype(np.float32)
    logits = rng.normal(0, 2, (rows, classes)).astype(np.float32)
    return logits, {"label": rng.random((rows, classes)) < 0.4, "mask": mask}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_mean_cross_entropy_of_the_sigmoid_units(smoothing):
    logits, batch = make_labels()
    weights = np.random.default_rng(1).random((3, 2)).astype(np.float32)
    sums = metric_sums(jnp.asarray(logits), batch, label_smoothing=smoothing)
    soft = (1 - smoothing) * batch["label"] + smoothing / 2
    np.testing.assert_allclose(sums["loss"], plain_loss(logits, soft).mean(1)[:6].sum(), rtol=1e-5)
    sums = metric_sums(jnp.asarray(logits), batch, class_weights=weights, label_smoothing=smoothing)
    weight = np.where(batch["label"], weights[:, 1], weights[:, 0])
    expected = (weight * plain_loss(logits, soft)).mean(1)[:6].sum()
    np.testing.assert_allclose(sums["loss"], expected, rtol=1e-5)


def test_labels_are_counted_where_the_mask_is_one():
    logits, batch = make_labels()
    sums = metric_sums(jnp.asarray(logits), batch)
    guess, label = (logits > 0)[:6], batch["label"][:6]
    expected = {"hits": guess & label, "predicted": guess, "positive": label}
    assert {name: int(sums[name]) for name in expected} == {
        name: int(values.sum()) for name, values in expected.items()
    }
    np.testing.assert_allclose(sums["correct"], (guess == label).mean(1).sum(), rtol=1e-6)
    assert sums["count"] == 6


def test_a_mixed_image_has_the_loss_of_its_soft_labels():
    logits, batch = make_labels()
    other = np.roll(batch["label"], 1, axis=0)
    share = np.linspace(0.1, 0.9, 8).astype(np.float32)
    sums = metric_sums(jnp.asarray(logits), batch | {"other": other, "share": share})
    soft = share[:, None] * batch["label"] + (1 - share[:, None]) * other
    np.testing.assert_allclose(sums["loss"], plain_loss(logits, soft).mean(1)[:6].sum(), rtol=1e-5)
    heavier = np.where(share[:, None] >= 0.5, batch["label"], other)
    assert sums["positive"] == heavier[:6].sum()


def test_a_run_learns_and_saves_the_thresholds_of_its_best_epoch(whole):
    rows, info = epochs_of(whole), read_info(whole)
    assert info.task == "multilabel" and info.head == "gap-8-0.5-3"
    best = max(rows, key=lambda row: row["val/mAP"])
    assert info.thresholds == tuple(best["val/thresholds"])
    _, val = evaluate_split(whole, "val")
    np.testing.assert_allclose(choose_thresholds(val.probs, val.labels), info.thresholds, atol=1e-4)
    result, test = evaluate_split(whole, "test")
    assert result["class_names"] == list(LABELS)
    assert result["mAP"] > 1.5 * test.labels.mean(), "no better than chance"


def test_an_interrupted_run_ends_with_the_same_weights_and_thresholds(
    whole, squares, tmp_path, monkeypatch
):
    config = make_config(squares, tmp_path / "run", **MULTILABEL, epochs=6)
    interrupt_at(monkeypatch, 12)
    with pytest.raises(Interrupted):
        train(config)
    train(config)
    assert_same_weights(whole, tmp_path / "run")
    assert_same_log(whole, tmp_path / "run")
    assert read_info(whole).thresholds == read_info(tmp_path / "run").thresholds


def test_pmap_on_cached_features_learns_what_one_device_learns_on_images(squares, tmp_path):
    settings = MULTILABEL | {"head": "gap-8-classes", "unfreeze": "none", "epochs": 3}
    settings["augment"] = "flip"
    logs = []
    for name, changes in (
        ("images", {"cache_features": "off"}),
        ("pmap", {"parallel": "pmap", "devices": 2}),
    ):
        train(make_config(squares, tmp_path / name, **settings | changes))
        logs.append(epochs_of(tmp_path / name))
    for expected, row in zip(*logs, strict=True):
        for key in ("train/loss", "train/f1", "val/loss", "val/f1", "val/mAP"):
            assert row[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6), key
        np.testing.assert_allclose(row["val/thresholds"], expected["val/thresholds"], rtol=1e-4)


def test_what_does_not_fit_several_labels_is_refused(squares, whole, tmp_path):
    config = make_config(squares, tmp_path / "run", **MULTILABEL, start_from=str(whole))
    for changes, message in (
        ({"head": "gap-1", "start_from": None}, "has 1 outputs, but the dataset has 3 classes"),
        ({"head": "gap-8-classes"}, "has `head` gap-8-0.5-3; got gap-8-3"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare_run(dataclasses.replace(config, **changes))
    with pytest.raises(ConfigError, match="has 1 outputs, but the dataset has 2 classes"):
        Head.parse("gap-1").for_classes(2, multilabel=True)
    images = make_images(tmp_path / "images", LABELS, each=4)
    with pytest.raises(ConfigError, match="has `task` multilabel; got multiclass"):
        prepare_run(make_config(images, tmp_path / "other", start_from=str(whole)))
    with pytest.raises(ConfigError, match="`monitor` must be another metric unless `task`"):
        Config(monitor="val/mAP")


def test_the_metric_of_the_best_weights_follows_the_task():
    assert Config().best_metric == "val/accuracy"
    multilabel = Config(dataset="a.csv", task="multilabel")
    assert multilabel.best_metric == "val/mAP"
    assert not multilabel.differences(dataclasses.replace(multilabel, monitor="val/mAP"))


def test_the_baseline_is_the_mean_entropy_of_the_labels_frequencies():
    targets = np.random.default_rng(0).random((500, 3)) < (0.5, 0.2, 0.05)
    shares = targets.mean(0)
    logits = np.broadcast_to(np.log(shares / (1 - shares)), targets.shape)
    baseline = PriorBaseline.from_targets(targets)
    assert baseline.loss == pytest.approx(plain_loss(logits, targets).mean()) == baseline.val_loss
    assert baseline.accuracy == pytest.approx(np.maximum(shares, 1 - shares).mean())


@pytest.mark.parametrize("learns", [False, True])
def test_a_network_that_predicts_the_labels_frequencies_has_collapsed(learns):
    targets = np.random.default_rng(0).random((2000, 3)) < (0.5, 0.3, 0.2)
    baseline = PriorBaseline.from_targets(targets)
    config = Config(weights="none", unfreeze=("all",), epochs=2)
    detector = CollapseDetector(
        config, plan_stages(config)[0], baseline, steps_per_epoch=60, val_images=400
    )
    loss = baseline.loss * (0.8 if learns else 1.001)
    sums, marks, collapses = dict.fromkeys(("loss", "correct", "count"), 0.0), [], []
    for step in range(1, 61):
        for name, value in (("loss", loss), ("correct", baseline.accuracy), ("count", 1)):
            sums[name] += 32 * value
        if step % 15 == 0:
            collapses.append(detector.check(marks, step, sums))
    val = {"val/loss": loss, "val/accuracy": baseline.accuracy}
    collapses.append(detector.check(marks, 60, sums, val=val))
    found = [collapse for collapse in collapses if collapse is not None]
    assert bool(found) != learns and detector.beats_chance(val) == learns
    if found:
        assert "the presence or absence of each label, whichever is more frequent" in str(found[0])
