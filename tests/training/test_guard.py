"""What the guard says of runs that collapse, and that it keeps silent where something is learned.

Runs are played to it as they would be logged: no network trains here.
"""

import json
import math

import numpy as np
import pytest

from vggjax.training.collapse.detector import Collapse, CollapseDetector, PriorBaseline
from vggjax.training.config import Config
from vggjax.training.freezing import plan_stages

TEN = [100] * 10


def play(
    loss,
    accuracy,
    *,
    counts=TEN,
    steps_per_epoch=40,
    epochs=2,
    batch_size=32,
    val_images=200,
    val=None,
    stop_at=None,
    **settings,
) -> list[Collapse]:
    """Plays the losses and accuracies of steps 0, 1, ...; `val` gives an epoch's, from 0."""
    flags = dict(weights="none", unfreeze=("all",), epochs=epochs, warmup_epochs=0) | settings
    config = Config(**flags)
    chance = PriorBaseline.from_counts(np.array(counts))
    guard = CollapseDetector(
        config,
        plan_stages(config)[0],
        chance,
        steps_per_epoch=steps_per_epoch,
        val_images=val_images,
    )
    rng = np.random.default_rng(0)
    every, marks, said = max(1, min(20, steps_per_epoch // 4)), [], []
    for epoch in range(epochs):
        sums = {"loss": 0.0, "correct": 0.0, "count": 0.0}
        for step in range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch):
            sums["loss"] += loss(step) * batch_size
            sums["correct"] += rng.binomial(batch_size, accuracy(step))
            sums["count"] += batch_size
            if (step + 1) % every == 0:
                said.append(guard.check(marks, step + 1, sums))
            marks = json.loads(json.dumps(marks))  # as a checkpoint keeps them
        values = val(epoch) if val else (loss(step), accuracy(step))
        values = dict(zip(("val/loss", "val/accuracy"), values, strict=True))
        said.append(guard.check(marks, step + 1, sums, val=values))
    return [found for found in said if found is not None]


def at(value):
    return lambda step: value


def test_a_loss_at_ln_classes_and_an_accuracy_at_chance_are_noticed_in_the_first_epoch():
    found = play(at(math.log(10)), at(0.1), epochs=1)
    assert [collapse.step for collapse in found] == [40]
    assert found[0].symptom.startswith("loss 2.303 = ln 10, accuracy ")
    assert "% of 10 classes (the commonest has 10.0 %)" in found[0].symptom
    assert "\n" not in found[0].reason


def test_a_long_epoch_is_looked_at_before_its_end():
    steps = [collapse.step for collapse in play(at(2.303), at(0.1), steps_per_epoch=400, epochs=1)]
    assert steps[0] == 300 and steps[-1] == 400


def test_within_the_warm_up_only_the_epochs_end_is_looked_at():
    found = play(at(2.303), at(0.1), steps_per_epoch=400, epochs=2, warmup_epochs=1)
    assert found[0].step == 400


def test_a_collapse_in_a_later_epoch_is_noticed_within_an_epoch():
    broken_at = 1000
    found = play(
        lambda step: 0.7 if step < broken_at else 2.31,
        lambda step: 0.8 if step < broken_at else 0.1,
        steps_per_epoch=400,
        epochs=5,
    )
    assert found and broken_at < found[0].step <= broken_at + 400 + 200


def test_a_loss_that_blew_up_and_fell_onto_chance_is_noticed_at_once():
    found = play(lambda step: 1e6 if step < 24 else 2.32, at(0.1), epochs=1)
    assert len(found) == 1


def test_what_a_blow_up_leaves_of_the_sums_does_not_hide_the_collapse():
    found = play(lambda step: 1e17 if step < 10 else 2.31, at(0.1), epochs=2)
    assert found[-1].step == 80 and found[-1].symptom.startswith("loss 2.31 ")


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_noticed_at_the_next_line_of_the_log(loss):
    found = play(lambda step: 2.0 if step < 12 else loss, at(0.3), epochs=1)
    assert found[0].step == 20 and not found[0].is_finite
    assert "loss is " in found[0].symptom and "step 20" in found[0].symptom


HEALTHY = {
    "learns well": dict(loss=lambda s: 2.3 * 0.96**s, accuracy=lambda s: 1 - 0.9 * 0.96**s),
    "waits at chance for half an epoch": dict(
        loss=lambda s: 2.303 if s < 20 else 2.303 - 0.01 * (s - 20),
        accuracy=lambda s: 0.1 if s < 20 else 0.25,
    ),
    "falls slowly": dict(loss=lambda s: 2.31 - 0.004 * s, accuracy=at(0.1)),
    "has a new head, whose loss is high and falls": dict(
        loss=lambda s: 2.4 + 9 * 0.95**s, accuracy=lambda s: 0.1 + 0.002 * s, epochs=1
    ),
    "guesses better before the loss shows it": dict(loss=at(2.3), accuracy=at(0.16)),
    "is judged well though dropout hides it": dict(
        loss=at(2.3), accuracy=at(0.1), val=lambda epoch: (2.1, 0.3)
    ),
    "has one batch": dict(
        loss=lambda s: 2.5 * 0.95**s,
        accuracy=lambda s: 1 - 0.9 * 0.95**s,
        steps_per_epoch=1,
        epochs=60,
        val_images=4,
        val=lambda epoch: (2.3, 0.1),
    ),
    "has nine of ten in one class, and learns slowly": dict(
        loss=lambda s: 0.34 - 0.0005 * s, accuracy=at(0.9), counts=[900, 100]
    ),
    "is frozen, of few steps": dict(
        loss=lambda s: 1.9 - 0.005 * s,
        accuracy=at(0.21),
        counts=[50] * 5,
        steps_per_epoch=5,
        epochs=6,
        unfreeze=("none",),
    ),
    "is mended by two of two classes": dict(loss=at(0.66), accuracy=at(0.6), counts=[50, 50]),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_alarm_for_a_run_that(name):
    assert play(**HEALTHY[name]) == []


def test_averaged_weights_that_are_good_still_do_not_hide_that_nothing_is_learned():
    found = play(at(2.303), at(0.1), epochs=1, val=lambda epoch: (0.5, 0.9), ema=0.999)
    assert len(found) == 1


def test_few_images_are_no_evidence():
    assert play(at(0.7), at(0.5), counts=[5, 5], batch_size=4, steps_per_epoch=8, epochs=4) == []


def test_two_uneven_classes_that_are_not_told_apart_are_noticed_by_the_loss():
    found = play(at(0.33), at(0.9), counts=[9000, 1000], steps_per_epoch=200, epochs=1)
    assert (
        found and "against" not in found[-1].symptom.split(",")[0] or "0.325" in found[-1].symptom
    )


def test_chance_is_the_best_guess_that_does_not_look():
    even = PriorBaseline.from_counts(np.array(TEN))
    assert (even.accuracy, even.loss) == (0.1, pytest.approx(math.log(10)))
    uneven = PriorBaseline.from_counts(np.array([90, 10, 0]))
    assert uneven.loss == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    balanced = PriorBaseline.from_counts(np.array([90, 10]), class_weights=np.array([50 / 90, 5.0]))
    assert balanced.loss == pytest.approx(math.log(2))


def test_chance_under_smoothed_labels_is_the_least_loss_of_a_constant_guess():
    shares, smoothing = np.array([0.7, 0.2, 0.1]), 0.2
    found = PriorBaseline.from_counts(shares * 100, label_smoothing=smoothing).loss
    losses = []
    for guess in np.random.default_rng(0).dirichlet([4, 2, 1.5], 20000):
        costs = -np.log(guess)
        losses.append(shares @ ((1 - smoothing) * costs + smoothing * costs.mean()))
    assert found == pytest.approx(min(losses), rel=1e-3) and found <= min(losses)


def test_a_resumed_run_sees_what_it_would_have_seen():
    whole, parts = [], []
    for marks_kept in (False, True):
        config = Config(weights="none", unfreeze=("all",), warmup_epochs=0)
        stage = plan_stages(config)[0]
        chance, marks = PriorBaseline.from_counts(np.array(TEN)), []
        sums = {"loss": 0.0, "correct": 0.0, "count": 0.0}
        for step in range(10, 410, 10):
            guard = CollapseDetector(config, stage, chance, steps_per_epoch=400, val_images=100)
            sums = {"loss": step * 73.7, "correct": step * 3.3, "count": step * 32.0}
            (parts if marks_kept else whole).append(guard.check(marks, step, sums))
            if marks_kept:
                marks = json.loads(json.dumps(marks))
        assert len(marks) <= 18
    assert whole == parts and any(whole)
