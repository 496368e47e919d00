"""Runs with stages, averages, falling rates and short epochs: planned, resumed, chained."""

import io

import numpy as np
import pytest
from rich.console import Console
from support.cached_runs import HEAD, make_config_of
from support.training_runs import (
    assert_same_log,
    assert_same_weights,
    epochs_of,
    interrupt_at,
    make_config,
    make_three_classes,
    pretend_pretrained,
    replace_metric,
    weights_of,
)

from vggjax.data.loader import Process
from vggjax.models.convnets import find_arch
from vggjax.training.batches import epoch_batches
from vggjax.training.console import print_run_summary
from vggjax.training.prepare import prepare_run
from vggjax.training.signals import Interrupted
from vggjax.training.trainer import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return the images, and the file of pretrained weights."""
    folder = tmp_path_factory.mktemp("data")
    return make_three_classes(folder), str(pretend_pretrained(folder, find_arch("tiny")))


@pytest.fixture
def config_of(data, tmp_path):
    """Make the settings of a staged run from its folder's name and its settings."""
    images, weights = data
    fixed = dict(
        weights=weights, unfreeze=("none",), epochs=None, augment="none", duplicates="ignore"
    )

    def make(name, **settings):
        return make_config(images, tmp_path / name, **fixed | settings)

    return make


ALL_AT_ONCE = {
    "stages": ("head:3", "block5:3", "block4:2"), "layer_decay": 0.5, "ema": 0.9, "clip_norm": 0.5,
    "label_smoothing": 0.1, "weight_decay": 1e-3, "schedule": "plateau", "plateau_patience": 1,
    "epoch_images": 13, "optimizer": "nadam", "learning_rate": 0.05, "warmup_epochs": 0,
}  # fmt: skip


@pytest.mark.slow
# 18 training images are 5 steps a pass; an epoch of 13 is 3 steps, so that most epochs begin in
# the middle of a pass. The stages end after 9, 18 and 24 steps.
def test_a_run_with_every_setting_interrupted_in_every_stage_is_the_unbroken_one(
    config_of, tmp_path, monkeypatch
):
    rising = [1 + epoch / 100 for epoch in range(1, 9)]  # a plateau from the first epoch on
    with monkeypatch.context() as patched:
        replace_metric(patched, "val/loss", rising)
        train(config_of("whole", **ALL_AT_ONCE))
    broken = config_of("broken", **ALL_AT_ONCE)
    replace_metric(monkeypatch, "val/loss", rising)
    for step in (5, 9, 14, 23):
        with monkeypatch.context() as patched:
            interrupt_at(patched, step)
            with pytest.raises(Interrupted):
                train(broken)
    train(broken)
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    assert_same_log(tmp_path / "whole", tmp_path / "broken")
    epochs = epochs_of(tmp_path / "broken")
    assert [line["step"] for line in epochs] == list(range(3, 25, 3))
    names = {name for name in epochs[-1] if name.startswith("learning_rate/")}
    assert names == {f"learning_rate/{group}" for group in ("block4", "block5", "head")}
    # A plateau lowers the rates of its stage; a new stage has its full rates again.
    rates = [line["learning_rate/head"] for line in epochs]
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.05, 0.05, 0.005, 0.05, 0.05])
    last = epochs[-1]
    assert last["learning_rate/block4"] == pytest.approx(last["learning_rate/block5"] / 2)


def test_each_stage_caches_the_features_below_what_it_trains(config_of):
    run = prepare_run(config_of("run", stages=("head:2", "block5:2", "block4:2")))
    assert {name: plan.cut for name, plan in run.feature_plans.items()} == {
        "head": "gap",
        "head+block5": "block4_pool",
        "head+block5+block4": "block3_pool",
    }
    # 2 epochs of 2 steps show no image twice, 6 of them do.
    short = prepare_run(config_of("short", stages=("head:2",), epoch_images=8))
    long = prepare_run(config_of("long", stages=("head:2", "block5:4"), epoch_images=8))
    assert not short.feature_plans and len(long.feature_plans) == 2


def test_short_epochs_have_the_batches_of_long_ones(config_of):
    run = prepare_run(config_of("run", stages=("head:10",), epoch_images=13))
    plain = prepare_run(config_of("plain", stages=("head:6",)))
    assert (run.steps_per_epoch, run.steps_per_pass, plain.steps_per_epoch) == (3, 5, 5)

    def batches(run, step, until):
        return epoch_batches(
            run.loaders["train"], step, until, batch_size=4, seed=0, process=Process()
        )

    short = [b for epoch in range(10) for b in batches(run, 3 * epoch, 3 * epoch + 3)]
    long = [b for epoch in range(6) for b in batches(plain, 5 * epoch, 5 * epoch + 5)]
    for one, other in zip(short, long, strict=True):
        np.testing.assert_array_equal(one["index"], other["index"])
    shown = np.concatenate([batch["index"][batch["mask"] > 0] for batch in short])
    _, times = np.unique(shown, return_counts=True)
    assert len(times) == 18 and set(times) == {6}
    (late,) = batches(run, 14, 15)
    np.testing.assert_array_equal(late["index"], short[14]["index"])


@pytest.mark.slow
def test_a_run_that_starts_from_another_takes_the_steps_of_a_second_stage(config_of, tmp_path):
    fixed = {
        "head": "gap-8-classes", "batch_size": 100, "monitor": "val/loss", "learning_rate": 1e-3,
        "optimizer": "sgd", "duplicates": "exact",
    }  # fmt: skip
    train(config_of("staged", **fixed, stages=("head:1", "block5:1")))
    train(config_of("first", **fixed, stages=("head:1",)))
    start = fixed | {"weights": "imagenet", "start_from": str(tmp_path / "first")}
    train(config_of("second", **start | {"unfreeze": ("block5",), "epochs": 1}))
    staged, first, second = (weights_of(tmp_path / name) for name in ("staged", "first", "second"))
    assert (second["block5_conv1/kernel"] != first["block5_conv1/kernel"]).any()
    for name, array in staged.items():
        # One step per stage: only the order of the images within it differs.
        np.testing.assert_allclose(array, second[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_summary_states_each_stage_s_rates_and_warns_of_other_pixels(config_of):
    def summary(name, **settings):
        console = Console(width=400, record=True, file=io.StringIO())
        print_run_summary(console, prepare_run(config_of(name, **settings)))
        return console.export_text()

    text = summary("run", **ALL_AT_ONCE, preprocess="unit")
    assert "head+block5" in text
    assert "head 0.05, block5 0.0005, block4 0.00025" in text
    assert "trained on 'caffe' pixels" in text
    assert "trained on" not in summary("new", preprocess="unit", weights="none")


def test_the_summary_says_what_a_run_without_a_recipe_does_and_why(tmp_path):
    config_of = make_config_of(tmp_path)

    def recipe(name, **settings):
        console = Console(width=400, record=True, file=io.StringIO())
        print_run_summary(console, prepare_run(config_of(name, **settings)))
        lines = console.export_text().splitlines()
        return next(line.split(maxsplit=1)[1] for line in lines if line.startswith("Recipe"))

    assert recipe("a", **HEAD).startswith("none: the head learns alone, on frozen pretrained")
    text = recipe("b")
    assert text.startswith("none: the head learns first, because the gradients of a new head")
    assert text.rstrip().endswith("then block5 at a rate of its own")
    assert "learn together from the start" in recipe("c", head_epochs=0)
    assert "starts from random ones" in recipe("d", weights="none")
    staged = {"epochs": None, "head_epochs": None, "unfreeze": "none", "stages": ("head:1",)}
    assert recipe("e", **staged).rstrip() == "none: the stages as given"
