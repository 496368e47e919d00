"""Which runs count as collapsed, and what their users are advised to change.

Logs of runs are simulated: no network trains here.
"""

import json
import math
import re
import shlex

import numpy as np
import pytest

from vggjax.cli.parsing import flag_of, parse
from vggjax.training.collapse.detector import Collapse, CollapseDetector, PriorBaseline, diagnose
from vggjax.training.config import Config
from vggjax.training.freezing import plan_stages
from vggjax.training.recipes import RECIPES

BALANCED = [100] * 10


def simulate(
    loss,
    accuracy,
    *,
    counts=BALANCED,
    steps_per_epoch=40,
    epochs=2,
    batch_size=32,
    val_images=200,
    val=None,
    **settings,
) -> list[Collapse]:
    """Return the collapses detected in a run of these losses and accuracies by step, from 0.

    `val` returns (loss, accuracy) of an epoch, from 0; by default those of its last step.
    """
    detector = make_detector(steps_per_epoch, counts, val_images, epochs=epochs, **settings)
    rng = np.random.default_rng(0)
    every, marks, checks = max(1, min(20, steps_per_epoch // 4)), [], []
    for epoch in range(epochs):
        sums = {"loss": 0.0, "correct": 0.0, "count": 0.0}
        for step in range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch):
            sums["loss"] += loss(step) * batch_size
            sums["correct"] += rng.binomial(batch_size, accuracy(step))
            sums["count"] += batch_size
            if (step + 1) % every == 0:
                checks.append(detector.check(marks, step + 1, sums))
            marks = json.loads(json.dumps(marks))  # as a checkpoint keeps them
        values = val(epoch) if val else (loss(step), accuracy(step))
        values = dict(zip(("val/loss", "val/accuracy"), values, strict=True))
        checks.append(detector.check(marks, step + 1, sums, val=values))
    return [collapse for collapse in checks if collapse is not None]


def always(value):
    return lambda step: value


def test_loss_and_accuracy_at_chance_are_detected_in_the_first_epoch():
    (collapse,) = simulate(always(math.log(10)), always(0.1), epochs=1)
    assert collapse.step == 40 and collapse.is_finite
    assert collapse.symptom.startswith("loss 2.303 (chance: ln 10 = 2.303), accuracy ")
    assert "(chance: 10.0%, the largest of 10 classes)" in collapse.symptom
    assert "\n" not in collapse.reason


def test_a_long_epoch_is_checked_before_its_end():
    collapses = simulate(always(2.303), always(0.1), steps_per_epoch=400, epochs=1)
    assert collapses[0].step == 300 and collapses[-1].step == 400


def test_during_warmup_only_the_end_of_an_epoch_is_checked():
    collapses = simulate(always(2.303), always(0.1), steps_per_epoch=400, epochs=2, warmup_epochs=1)
    assert collapses[0].step == 400


def test_a_collapse_in_a_later_epoch_is_detected_within_an_epoch():
    start = 1000
    collapses = simulate(
        lambda step: 0.7 if step < start else 2.31,
        lambda step: 0.8 if step < start else 0.1,
        steps_per_epoch=400,
        epochs=5,
    )
    assert start < collapses[0].step <= start + 400 + 200


def test_a_loss_that_blew_up_and_dropped_to_chance_is_detected():
    assert len(simulate(lambda step: 1e6 if step < 24 else 2.32, always(0.1), epochs=1)) == 1


def test_what_a_blow_up_leaves_in_the_sums_does_not_hide_the_collapse():
    collapses = simulate(lambda step: 1e17 if step < 10 else 2.31, always(0.1), epochs=2)
    assert collapses[-1].step == 80 and collapses[-1].symptom.startswith("loss 2.31 ")


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_detected_at_the_next_line_of_the_log(loss):
    first = simulate(lambda step: 2.0 if step < 12 else loss, always(0.3), epochs=1)[0]
    assert (first.step, first.is_finite) == (20, False)
    assert first.symptom == f"the loss is {loss} at step 20"


HEALTHY = {
    "learns well": dict(loss=lambda s: 2.3 * 0.96**s, accuracy=lambda s: 1 - 0.9 * 0.96**s),
    "stays at chance for half an epoch": dict(
        loss=lambda s: 2.303 if s < 20 else 2.303 - 0.01 * (s - 20),
        accuracy=lambda s: 0.1 if s < 20 else 0.25,
    ),
    "has a slowly falling loss": dict(loss=lambda s: 2.31 - 0.004 * s, accuracy=always(0.1)),
    "has a new head, with a high and falling loss": dict(
        loss=lambda s: 2.4 + 9 * 0.95**s, accuracy=lambda s: 0.1 + 0.002 * s, epochs=1
    ),
    "predicts better before the loss shows it": dict(loss=always(2.3), accuracy=always(0.16)),
    "validates well though dropout hides it": dict(
        loss=always(2.3), accuracy=always(0.1), val=lambda epoch: (2.1, 0.3)
    ),
    "has one batch per epoch": dict(
        loss=lambda s: 2.5 * 0.95**s,
        accuracy=lambda s: 1 - 0.9 * 0.95**s,
        steps_per_epoch=1,
        epochs=60,
        val_images=4,
        val=lambda epoch: (2.3, 0.1),
    ),
    "has nine of ten images in one class and learns slowly": dict(
        loss=lambda s: 0.34 - 0.0005 * s, accuracy=always(0.9), counts=[900, 100]
    ),
    "trains a head in few steps": dict(
        loss=lambda s: 1.9 - 0.005 * s,
        accuracy=always(0.21),
        counts=[50] * 5,
        steps_per_epoch=5,
        epochs=6,
        unfreeze=("none",),
    ),
    "separates two classes a little": dict(
        loss=always(0.66), accuracy=always(0.6), counts=[50, 50]
    ),
    "blew up and now has a loss below chance": dict(
        loss=lambda s: 1e6 if s < 24 else 2.2, accuracy=always(0.1), epochs=1
    ),
    "has too few images for evidence": dict(
        loss=always(0.7),
        accuracy=always(0.5),
        counts=[5, 5],
        batch_size=4,
        steps_per_epoch=8,
        epochs=4,
    ),  # fmt: skip
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_collapse_is_detected_in_a_run_that(name):
    assert simulate(**HEALTHY[name]) == []


def test_good_averaged_weights_do_not_hide_that_nothing_is_learned():
    collapses = simulate(
        always(2.303), always(0.1), epochs=1, val=lambda epoch: (0.5, 0.9), ema=0.999
    )
    assert len(collapses) == 1


def test_uneven_classes_that_are_not_told_apart_are_detected_by_the_loss():
    settings = dict(counts=[9000, 1000], steps_per_epoch=200, epochs=1)
    collapses = simulate(always(0.33), always(0.9), **settings)
    assert collapses[-1].symptom.startswith("loss 0.33 (chance: 0.3251), accuracy ")
    assert simulate(always(0.31), always(0.9), **settings) == []


def test_the_baseline_is_the_best_constant_prediction():
    even = PriorBaseline.from_counts(np.array(BALANCED))
    assert (even.accuracy, even.loss) == (0.1, pytest.approx(math.log(10)))
    uneven = PriorBaseline.from_counts(np.array([90, 10, 0]))
    assert uneven.loss == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    weights = np.array([50 / 90, 5.0])
    balanced = PriorBaseline.from_counts(np.array([90, 10]), class_weights=weights)
    assert balanced.loss == pytest.approx(math.log(2))


def test_with_smoothed_labels_no_constant_prediction_has_a_lower_loss_than_the_baseline():
    shares, smoothing = np.array([0.7, 0.2, 0.1]), 0.2
    baseline = PriorBaseline.from_counts(shares * 100, label_smoothing=smoothing).loss
    losses = []
    for prediction in np.random.default_rng(0).dirichlet([4, 2, 1.5], 20000):
        costs = -np.log(prediction)
        losses.append(shares @ ((1 - smoothing) * costs + smoothing * costs.mean()))
    assert baseline == pytest.approx(min(losses), rel=1e-3) and baseline <= min(losses)


def make_detector(steps_per_epoch=400, counts=BALANCED, val_images=100, **settings):
    config = Config(**dict(weights="none", unfreeze=("all",), warmup_epochs=0) | settings)
    return CollapseDetector(
        config,
        plan_stages(config)[0],
        PriorBaseline.from_counts(np.array(counts)),
        steps_per_epoch=steps_per_epoch,
        val_images=val_images,
    )


@pytest.mark.parametrize(
    ("before", "accuracy", "epoch", "is_setback"),
    [
        (0.737, 0.630, 1, True),  # what tuning all layers at 1e-4 did to a CIFAR-10 run
        (0.826, 0.731, 2, True),
        (0.826, 0.731, 3, False),  # after the epoch that follows the warmup
        (0.737, 0.700, 1, False),
        (None, 0.630, 1, False),  # resumed from a checkpoint of an older version
    ],
)
def test_a_setback_is_a_large_and_significant_loss_of_accuracy_in_the_first_epochs(
    before, accuracy, epoch, is_setback
):
    settings = dict(weights="imagenet", warmup_epochs=1, epochs=9, head_epochs=0)
    detector = make_detector(400, val_images=1110, **settings)
    setback = detector.find_setback(400 * epoch, {"val/accuracy": accuracy}, before)
    assert (setback is not None) == is_setback
    few = make_detector(400, val_images=20, **settings)
    assert few.find_setback(400, {"val/accuracy": 0.63}, 0.737) is None


def test_a_resumed_run_detects_what_the_whole_run_detects_with_few_marks():
    whole, marks, resumed_marks = make_detector(), [], []
    detected = []
    for step in range(10, 410, 10):
        sums = {"loss": step * 73.7, "correct": step * 3.3, "count": step * 32.0}
        collapse = whole.check(marks, step, sums)
        resumed_marks = json.loads(json.dumps(resumed_marks))
        assert make_detector().check(resumed_marks, step, sums) == collapse
        detected.append(collapse is not None)
    assert marks == resumed_marks and len(marks) <= 18
    assert any(detected) and not all(detected)


def test_the_marks_of_an_epoch_add_up_to_its_sums():
    detector, marks = make_detector(), []
    for step in range(10, 1210, 10):
        done = step % 400 or 400
        sums = {"loss": done * 73.7, "correct": done * 3.0, "count": done * 32.0}
        detector.check(marks, step, sums)
        epoch = [mark for mark in marks if mark[0] > step - done]
        for i, name in enumerate(("loss", "correct", "count"), start=1):
            assert sum(mark[i] for mark in epoch) == pytest.approx(sums[name])


def advice_for(*, stage=-1, factor=1.0, is_finite=True, **settings):
    config = Config(**settings)
    return diagnose(config, plan_stages(config)[stage], is_finite=is_finite, factor=factor)


def test_a_network_unfrozen_at_once_at_a_high_rate_should_train_its_head_first():
    causes, advice = advice_for(
        unfreeze=("all",),
        head_epochs=0,
        epochs=5,
        learning_rate=1e-2,
        backbone_learning_rate=1e-2,
        warmup_epochs=0,
    )
    assert advice == (
        "`learning_rate` 0.001",
        "`stages` head:1 block5:2 all:2",
        "`backbone_learning_rate` 1e-05",
        "`warmup_epochs` 1",
        "`clip_norm` 1",
    )
    assert causes[0] == "the learning rate 0.01 is high for adam"
    assert "unfrozen at once" in causes[1]


def test_pixels_that_the_weights_do_not_expect_come_first():
    causes, advice = advice_for(preprocess="unit", weights="imagenet")
    assert advice[0] == "`preprocess` auto" and "unit" in causes[0]
    assert "`preprocess` auto" not in advice_for(preprocess="unit", weights="none")[1]


def test_a_low_rate_is_raised_unless_the_loss_is_not_finite():
    assert "`learning_rate` 1e-06" in advice_for(learning_rate=1e-7)[1]
    assert "`learning_rate` 1e-08" in advice_for(learning_rate=1e-7, is_finite=False)[1]
    assert "`learning_rate` 0.001" in advice_for(learning_rate=1e-4, optimizer="sgd")[1]


def test_after_a_recovery_the_present_rate_counts():
    assert "`learning_rate` 0.0001" in advice_for(learning_rate=1e-2, factor=0.1)[1]


def test_a_rate_per_block_counts_as_the_backbones_highest():
    rates = dict(unfreeze=("block5",), head_epochs=2, backbone_learning_rate=1e-3)
    assert advice_for(**rates, layer_decay=0.5) == advice_for(**rates)
    assert "`backbone_learning_rate` 1e-06" in advice_for(**rates, layer_decay=0.5)[1]


@pytest.mark.parametrize("recipe", [name for name in RECIPES if RECIPES[name].trains])
def test_the_stages_of_every_recipe_can_be_diagnosed(recipe):
    config = Config(**RECIPES[recipe].settings)
    for stage in plan_stages(config):
        causes, advice = diagnose(config, stage)
        assert causes and len(advice) >= len(causes)


def test_nothing_is_advised_that_the_run_has_already():
    _, advice = advice_for(
        unfreeze=("block5",), head_epochs=2, clip_norm=1.0, warmup_epochs=1.0, learning_rate=1e-3
    )
    assert advice == ("`learning_rate` 0.0001",)


@pytest.mark.parametrize(
    "settings",
    [
        dict(unfreeze=("all",), head_epochs=0, epochs=1, warmup_epochs=0),
        dict(unfreeze=("block4", "block5"), head_epochs=0, epochs=9, preprocess="torch"),
        dict(stages=("block5:3", "all:2"), learning_rate=3e-2),
        dict(weights="none", unfreeze=("none",)),
        dict(weights="none", unfreeze=("all",), model="vgg11", learning_rate=1e-9),
    ],
)
def test_every_piece_of_advice_is_a_flag_that_the_command_line_takes(settings):
    _, advice = advice_for(stage=0, **settings)
    assert advice
    for words in advice:
        flags = re.sub(r"`(\w+)`", lambda match: flag_of(match[1]), words)
        parse(Config, shlex.split(flags), "train", default=Config(dataset="x"))
