"""Whole runs with stages, averages, falling rates and short epochs: resumed, chained, kept."""

import io

import numpy as np
import pytest
from flax import nnx
from rich.console import Console
from support.kept_run import interrupt_at, make_config_of
from test_loop import assert_same_weights, log_without_times, weights_of

from vggjax.errors import ConfigError
from vggjax.training import prepare, trainer
from vggjax.training.batches import epoch_batches, images_seen
from vggjax.training.console import print_run_summary
from vggjax.training.run_dir.log import read_log
from vggjax.training.run_dir.saved_model import load_model
from vggjax.training.signals import Interrupted
from vggjax.training.trainer import train

STAGES = {"unfreeze": ("none",), "head_epochs": None, "epochs": None}
"""Without what the staged runs' configs would say otherwise."""


@pytest.fixture
def config_of(tmp_path, monkeypatch, tiny_arch):
    return make_config_of(tmp_path, monkeypatch, tiny_arch)


ALL_AT_ONCE = STAGES | {
    "stages": ("head:3", "block5:3", "block4:2"), "layer_decay": 0.5, "ema": 0.9, "clip_norm": 0.5,
    "label_smoothing": 0.1, "weight_decay": 1e-3, "schedule": "plateau", "plateau_patience": 1,
    "epoch_images": 13, "optimizer": "nadam", "learning_rate": 0.05, "warmup_epochs": 0,
}  # fmt: skip


@pytest.mark.slow
# 18 training images are 5 steps a pass; an epoch of 13 is 3 steps, so that most epochs begin in
# the middle of a pass. The stages end after 9, 18 and 24 steps.
def test_a_run_with_all_of_it_interrupted_in_every_stage_is_the_unbroken_one(
    config_of, tmp_path, monkeypatch
):
    evaluate = trainer.evaluate_split

    def judge(run, split, eval_step, state):  # worse from epoch to epoch: a plateau
        found = evaluate(run, split, eval_step, state)
        return found | {"val/loss": 1 + int(run.placement.fetch(state.step)) / 100}

    monkeypatch.setattr(trainer, "evaluate_split", judge)
    train(config_of("whole", **ALL_AT_ONCE))
    broken = config_of("broken", **ALL_AT_ONCE)
    for step in (5, 9, 14, 23):
        with monkeypatch.context() as patched:
            interrupt_at(patched, step)
            with pytest.raises(Interrupted):
                train(broken)
    train(broken)
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    logs = [log_without_times(tmp_path / name) for name in ("whole", "broken")]
    epochs = [[line for line in log if line["kind"] == "epoch"] for log in logs]
    assert [line["step"] for line in epochs[0]] == list(range(3, 25, 3))
    for one, other in zip(*epochs, strict=True):
        assert one.keys() == other.keys()
        numbers = [name for name, value in one.items() if isinstance(value, float)]
        assert [one[n] for n in numbers] == pytest.approx([other[n] for n in numbers], rel=1e-6)
    # Which rates were there to be resumed: of each block, and lowered by the plateau.
    names = {name for name in epochs[0][-1] if name.startswith("learning_rate/")}
    assert names == {f"learning_rate/{group}" for group in ("block4", "block5", "head")}
    rates = [line["learning_rate/head"] for line in epochs[0]]
    # A new stage has its full rates again.
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.05, 0.05, 0.005, 0.05, 0.05])
    last = epochs[0][-1]
    assert last["learning_rate/block4"] == pytest.approx(last["learning_rate/block5"] / 2)


def test_each_stage_keeps_the_features_below_what_it_trains(config_of):
    run = prepare.prepare_run(config_of("run", **STAGES, stages=("head:2", "block5:2", "block4:2")))
    assert {name: plan.cut for name, plan in run.feature_plans.items()} == {
        "head": "gap",
        "head+block5": "block4_pool",
        "head+block5+block4": "block3_pool",
    }
    short = STAGES | {"stages": ("head:2", "block5:4"), "epoch_images": 8}
    # 2 epochs of 2 steps show no image twice, 4 of them do.
    assert set(prepare.prepare_run(config_of("short", **short)).feature_plans) == {"head+block5"}


@pytest.mark.slow
def test_two_runs_one_from_the_other_take_the_steps_of_two_stages(config_of, tmp_path):
    fixed = STAGES | {
        "head": "gap-8-classes", "batch_size": 100, "monitor": "val/loss", "learning_rate": 1e-3,
        "optimizer": "sgd", "duplicates": "exact",
    }  # fmt: skip
    staged = config_of("staged", **fixed, stages=("head:1", "block5:1"))
    train(staged)
    train(config_of("first", **fixed, stages=("head:1",)))
    start = fixed | {"weights": "imagenet", "start_from": str(tmp_path / "first")}
    train(config_of("second", **start | {"unfreeze": ("block5",), "epochs": 1}))
    ours, theirs = weights_of(tmp_path / "staged"), weights_of(tmp_path / "second")
    first = weights_of(tmp_path / "first")
    assert np.abs(theirs["block5_conv1/kernel"] - first["block5_conv1/kernel"]).max() > 0
    for name, array in ours.items():
        # One step a stage: only the order of the images within it differs.
        np.testing.assert_allclose(array, theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_averages_are_what_is_judged_and_what_is_kept(config_of, tmp_path, monkeypatch):
    seen = []
    evaluate = trainer.evaluate_split

    def judge(run, split, eval_step, state):
        params, _ = state.eval_params
        pair = (state.params["predictions"]["kernel"], params["predictions"]["kernel"])
        seen.append([np.asarray(value[...]).copy() for value in pair])
        return evaluate(run, split, eval_step, state)

    monkeypatch.setattr(trainer, "evaluate_split", judge)
    config = config_of("run", **STAGES, stages=("head:2",), ema=0.9, monitor="val/loss")
    train(config)
    values = [line["val/loss"] for line in read_log(tmp_path / "run") if line["kind"] == "epoch"]
    raw, average = seen[int(np.argmin(values))]
    kept = weights_of(tmp_path / "run")["predictions/kernel"]
    np.testing.assert_array_equal(kept, average)
    assert not np.array_equal(raw, average)
    run = prepare.prepare_run(config)
    model, _ = load_model(tmp_path / "run")
    step = trainer.make_eval_step(model, placement=run.placement, mode=config.preprocessing.mode)
    state = trainer.TrainState(None, *nnx.split(model, nnx.Param, nnx.BatchStat)[1:], None)
    found = evaluate(run, "val", step, state)
    assert found["val/loss"] == pytest.approx(min(values), rel=1e-5)


def test_short_epochs_walk_through_the_same_batches_and_show_each_image_alike(config_of):
    run = prepare.prepare_run(config_of("run", **STAGES, stages=("head:10",), epoch_images=13))
    plain = prepare.prepare_run(config_of("plain", **STAGES, stages=("head:6",)))
    assert (run.steps_per_epoch, run.steps_per_pass, plain.steps_per_epoch) == (3, 5, 5)
    ours = [b for epoch in range(10) for b in epoch_batches(run, 3 * epoch, 3 * epoch + 3)]
    theirs = [b for epoch in range(6) for b in epoch_batches(plain, 5 * epoch, 5 * epoch + 5)]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one["index"], other["index"])
    shown = np.concatenate([batch["index"][batch["mask"] > 0] for batch in ours])
    _, times = np.unique(shown, return_counts=True)
    assert len(times) == 18 and set(times) == {6}
    assert [images_seen(run, step) for step in (0, 4, 5, 6, 30)] == [0, 16, 18, 22, 108]
    # From the middle: what the whole has behind it.
    (late,) = epoch_batches(run, 14, 15)
    np.testing.assert_array_equal(late["index"], ours[14]["index"])


@pytest.mark.slow
def test_epochs_of_any_length_are_the_same_steps(config_of, tmp_path):
    fixed = STAGES | {"schedule": "constant", "warmup_epochs": 0, "monitor": "val/loss"}
    train(config_of("long", **fixed, stages=("block5:3",)))
    train(config_of("short", **fixed, stages=("block5:5",), epoch_images=12))

    def last(name):
        lines = read_log(tmp_path / name)
        return next(line for line in lines if line["kind"] == "epoch" and line["step"] == 15)

    assert last("long")["val/loss"] == last("short")["val/loss"]


def test_a_run_starts_from_another_with_its_pixels_and_only_where_all_fits(config_of, tmp_path):
    fixed = STAGES | {"stages": ("head:1",), "preprocess": "unit", "split": "0.6,0.2,0.2"}
    train(config_of("first", **fixed))
    start = STAGES | {
        "weights": "imagenet", "start_from": str(tmp_path / "first"), "unfreeze": ("block5",),
        "epochs": 1,
    }  # fmt: skip
    run = prepare.prepare_run(config_of("second", **start))
    assert [stage.name for stage in run.stages] == ["head+block5"]
    assert run.config.preprocessing == load_model(tmp_path / "first")[1].preprocessing
    assert run.config.preprocess == "unit"
    first = weights_of(tmp_path / "first")
    np.testing.assert_array_equal(run.model.fc1.kernel[...], first["fc1/kernel"])
    np.testing.assert_array_equal(run.model.block1_conv1.kernel[...], first["block1_conv1/kernel"])
    for changes, message in [
        ({"head": "gap-4-classes"}, r"has `head` gap-8-0.5-3; got gap-4-3. Give `head` gap-8"),
        ({"model": "vgg16"}, "has `model` tiny; got vgg16"),
        ({"preprocess": "torch"}, "trained with `preprocess` unit.* got `preprocess` torch"),
        ({"image_size": 64}, "trained with `image_size` 32"),
        ({"seed": 7}, r"was trained on \d+ of the \d+ images of this run's val and test splits"),
        ({"start_from": str(tmp_path / "nowhere")}, "`start_from`: There is no run folder"),
        ({"start_from": str(tmp_path / "images")}, "`start_from`: .* holds no finished model"),
    ]:
        with pytest.raises(ConfigError, match=message):
            prepare.prepare_run(config_of("refused", **start | changes))
    (tmp_path / "images" / "c").rename(tmp_path / "images" / "d")
    with pytest.raises(ConfigError, match="other classes: a, b, c; the dataset has a, b, d"):
        prepare.prepare_run(config_of("refused", **start))


def test_the_first_screen_says_each_stage_s_rates_and_which_pixels_the_weights_expect(config_of):
    def screen(name, **settings):
        console = Console(width=400, record=True, file=io.StringIO())
        print_run_summary(console, prepare.prepare_run(config_of(name, **STAGES | settings)))
        return console.export_text()

    told = screen("run", **ALL_AT_ONCE, preprocess="unit")
    assert "head+block5, epochs 4-6, 3 steps each: " in told
    assert "frozen; learning rate head 0.05, block5 0.0005, block4 0.00025" in told
    assert "plateau schedule (x 0.1 after 1 epochs), weight decay 0.001, gradient norm" in told
    assert "The weights were trained on 'caffe' pixels" in told and "not on pixels div" in told
    plain = screen("plain", unfreeze=("block5",))
    assert "The weights were trained on" not in plain
    assert "learning rate head 0.01, backbone 0.0001" in plain
    assert "The weights were" not in screen("new", preprocess="unit", weights="none")
