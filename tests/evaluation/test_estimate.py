"""What to expect of a dataset is told from a linear head, without the test split."""

import dataclasses
import json
import re

import numpy as np
import pytest
from support.cached_runs import make_config_of

from vggjax.cli.main import main
from vggjax.errors import ConfigError, DataError
from vggjax.evaluation.estimate import (
    _nested_parts,
    estimate,
    extrapolate,
    interval_on_test,
    learning_curve,
)
from vggjax.training import prepare


def test_the_curve_rises_with_the_images_and_duplicates_teach_it_nothing():
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1, 2], 60)
    signal = np.eye(8, dtype=np.float32)[labels] * 0.5 + rng.normal(0, 0.25, (180, 8))
    sizes, correct = learning_curve(signal.astype(np.float32), labels)
    accuracy = correct.mean(1)
    assert sizes == [15, 42, 144] and accuracy[2] > 0.8 > accuracy[0] > 0.4
    # Noise, in which each image is there three times.
    noise = np.repeat(rng.normal(0, 1, (60, 64)), 3, axis=0).astype(np.float32)
    labels, groups = np.repeat(rng.integers(0, 2, 60), 3), np.repeat(np.arange(60), 3)
    leaked = learning_curve(noise, labels)[1][2].mean()
    honest = learning_curve(noise, labels, groups)[1][2].mean()
    assert leaked > 0.9 and honest < 0.7


def test_few_groups_leave_folds_empty_and_one_group_is_refused():
    rng = np.random.default_rng(0)
    labels, features = np.arange(24) % 2, rng.normal(0, 1, (24, 4)).astype(np.float32)
    sizes, _ = learning_curve(features, labels, np.arange(24) // 12)
    assert sizes[2] == 12
    with pytest.raises(DataError, match="all of these are near-duplicates"):
        learning_curve(features, labels, np.zeros(24, int))
    pairs = np.repeat(np.arange(12), 2)
    assert learning_curve(features, pairs)[1].shape == (3, 24)


def test_a_power_law_is_continued_and_no_error_stays_below_one():
    # The error halves with four times the images: 40 %, 20 %, 10 %.
    correct = np.arange(1000) >= np.array([[400], [200], [100]])
    (now, more), drawn = extrapolate([25, 100, 400], correct, (400, 1600))
    assert now == pytest.approx(0.9, abs=2e-3) and more == pytest.approx(0.95, abs=2e-3)
    low, high = np.quantile(drawn[:, 1], [0.025, 0.975])
    assert 0.92 < low < 0.945 and 0.955 < high < 0.98
    falling = np.arange(1000) >= np.array([[100], [200], [400]])  # more images do no harm
    assert extrapolate([25, 100, 400], falling, (1600,))[0] == pytest.approx(0.6, abs=2e-3)
    (perfect,), _ = extrapolate([25, 100, 400], np.ones((3, 1000), bool), (1600,))
    assert 0.999 < perfect < 1


def test_the_interval_covers_the_sampling_of_the_test_split():
    rng = np.random.default_rng(0)
    estimates = rng.normal(0.9, 0.01, 1000)
    low, high = interval_on_test(0.9, estimates, 200)
    shown = rng.binomial(200, rng.normal(0.9, 0.01, 4000)) / 200
    assert 0.92 < np.mean((shown >= low) & (shown <= high)) < 0.98
    assert interval_on_test(0.9, estimates, 10**6)[1] < 0.925
    assert interval_on_test(1.0, np.ones(10), 50)[0] < 0.96


def test_an_estimate_reads_no_test_image_and_writes_nothing(tmp_path, monkeypatch, capsys):
    config, read = make_config_of(tmp_path)("run"), []
    splits = prepare.prepare_run(config).splits
    open_source, before = prepare.open_source, sorted(tmp_path.rglob("*"))

    def open_counted(*args, **kwargs):
        source = open_source(*args, **kwargs)
        counted = lambda i: read.append(i) or source.read(i)  # noqa: E731
        return dataclasses.replace(source, read=counted, read_as=None)

    monkeypatch.setattr(prepare, "open_source", open_counted)
    result = estimate(config)
    assert sorted(read) == sorted([*splits["train"], *splits["val"]])
    assert sorted(tmp_path.rglob("*")) == before
    assert (result.images, result.train_images, result.test_images) == (24, 18, 6)
    assert len(result.curve) == 3 and 0 <= result.interval[0] <= result.interval[1] <= 1
    assert json.loads(json.dumps(result.to_json()))["more_images"] == 72
    text = str(result)
    assert "of the 6 test images after training on 18; always guessing" in text
    assert re.search(r"frequent class gives \d+ %\.", text)
    assert "Four times the images, 72, would give about" in text
    flags = [
        "--images",
        "20",
        "--weights",
        config.weights,
        "--model",
        "tiny",
        "--image-size",
        "32",
        "--json",
    ]
    assert main(["estimate", config.dataset, *flags, "--preprocess", "torch"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 21
    with pytest.raises(ConfigError, match="`images` must be at least 20; got 5"):
        estimate(config, max_images=5)


def test_a_slow_machine_estimates_from_a_quarter_of_the_images(tmp_path, monkeypatch, capsys):
    config = make_config_of(tmp_path, each=20)("run")
    whole = estimate(config, max_images=2000)
    monkeypatch.setattr("vggjax.evaluation.estimate.SMALLEST_PART", 5)
    assert dataclasses.replace(estimate(config), seconds=0) == dataclasses.replace(whole, seconds=0)
    # Quarter and half in the order of the parts, each with the same share of every class.
    labels = np.repeat([0, 1, 2], (80, 40, 40))
    indices, ends = _nested_parts(labels, np.arange(160), np.random.default_rng(0))
    assert ends == [40, 80, 160] and sorted(indices) == list(range(160))
    assert [np.bincount(labels[indices[:end]]).tolist() for end in ends[:2]] == [
        [20, 10, 10],
        [40, 20, 20],
    ]
    monkeypatch.setattr("vggjax.evaluation.estimate.LIMIT_S", 0.0)
    monkeypatch.setattr("vggjax.evaluation.estimate.MIN_IMAGES", 5)
    result = estimate(config)
    assert (result.images, result.most_images, whole.images) == (12, 48, 48)
    flags = "--weights", config.weights, "--model", "tiny", "--image-size", "32"
    assert main(["estimate", config.dataset, *flags, "--preprocess", "torch"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "from 27 images, since 54 would take too long here; set --images to 54" in printed


def test_too_few_images_and_several_labels_are_refused(tmp_path):
    config = make_config_of(tmp_path, each=5)("run")
    with pytest.raises(DataError, match="at least 20 readable images .* got 12 in 3 classes"):
        estimate(config)
    config = dataclasses.replace(config, task="multilabel")
    with pytest.raises(ConfigError, match="one label per image; got `task` multilabel"):
        estimate(config)
