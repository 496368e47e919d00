"""A run from its first step to its saved model: resumed, refused, stopped early, reported."""

import dataclasses
import io
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
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

from vggjax import api
from vggjax.api import fit
from vggjax.cli.main import main
from vggjax.data.sources.open import open_source
from vggjax.errors import ConfigError, DataError, VggjaxError
from vggjax.evaluation.evaluate import evaluate
from vggjax.models.convnets import find_arch
from vggjax.training import prepare, trainer
from vggjax.training.console import print_run_summary
from vggjax.training.prepare import prepare_run
from vggjax.training.progress import CompiledStep
from vggjax.training.run_dir.checked_json import read_json
from vggjax.training.run_dir.checkpoint import Checkpoints
from vggjax.training.run_dir.log import read_log
from vggjax.training.run_dir.run_result import load_model, load_run_result
from vggjax.training.signals import Interrupted
from vggjax.training.trainer import train

EVALUATION_S = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def images(folder):
    return make_three_classes(folder)


@pytest.fixture(scope="module")
def settings(folder):
    """A head stage of 5 steps, then block5 for 10, on pixels of another range than caffe's."""
    weights = str(pretend_pretrained(folder, find_arch("tiny")))
    return {"weights": weights, "unfreeze": "block5", "preprocess": "unit"}


@pytest.fixture(scope="module")
def whole(images, folder, settings):
    """A run that was never interrupted, with the time of its evaluations known."""
    judge = trainer.evaluate_split
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            trainer, "evaluate_split", lambda *args: time.sleep(EVALUATION_S) or judge(*args)
        )
        return train(make_config(images, folder / "whole", **settings))


# 18 training images make 5 steps an epoch: 7 is inside the second stage, 5 is the first's end.
@pytest.mark.parametrize(
    "step", [7, *(pytest.param(step, marks=pytest.mark.slow) for step in (3, 5, 10))]
)
def test_an_interrupted_run_ends_with_the_same_weights_and_log(
    whole, images, settings, tmp_path, monkeypatch, step
):
    config = make_config(images, tmp_path / "run", **settings)
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        interrupt_at(patched, step)
        with pytest.raises(Interrupted, match=str(config.workdir)) as caught:
            train(config)
    assert caught.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (tmp_path / "run" / "model.json").exists()
    train(config)
    assert_same_weights(whole.workdir, tmp_path / "run")
    assert_same_log(whole.workdir, tmp_path / "run")


def test_a_finished_run_is_loaded_and_not_trained_again(whole, capsys):
    log = (whole.workdir / "log.jsonl").read_text()
    again = train(whole.config)
    assert "already trained" in capsys.readouterr().out
    assert (whole.workdir / "log.jsonl").read_text() == log
    assert again.info == whole.info and again.config == whole.config
    assert again.source.ids == whole.source.ids
    assert again.duplicates == whole.duplicates == whole.duplicate_groups.counts | {"leaked": 0}
    assert again.splits.keys() == whole.splits.keys()
    for name, indices in whole.splits.items():
        np.testing.assert_array_equal(again.splits[name], indices)
    batch = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    np.testing.assert_array_equal(again.model(batch), whole.model(batch))


def test_other_settings_or_images_for_the_same_workdir_are_refused(whole, images):
    with pytest.raises(ConfigError, match=r"`epochs` was 3, now 4.*finished.*`start_from`"):
        train(dataclasses.replace(whole.config, epochs=4))
    moved = images / "b" / "new.png"
    (images / "a" / "00.png").rename(moved)
    try:
        with pytest.raises(DataError, match="not the one that .* was trained on: new: b/new.png"):
            train(whole.config)
        gone = load_run_result(whole.workdir)
        assert gone.source is None and gone.splits is None and gone.info == whole.info
    finally:
        moved.rename(images / "a" / "00.png")


def test_the_kept_weights_are_those_of_the_best_evaluation(whole):
    epochs = epochs_of(whole.workdir)
    accuracy, loss = max((line["val/accuracy"], -line["val/loss"]) for line in epochs)
    evaluation = evaluate(whole, split="val")
    assert evaluation["accuracy"] == pytest.approx(accuracy)
    # Another program and another batch size: sums of float32 in another order.
    assert evaluation["loss"] == pytest.approx(-loss, rel=1e-5)
    (kept,) = [line for line in epochs if line["is_best"]][-1:]
    assert (kept["val/accuracy"], kept["val/loss"]) == (accuracy, -loss)


def test_the_logged_rates_are_those_of_the_updates(whole):
    rates = {
        line["step"]: {name: rate for name, rate in line.items() if name.startswith("learning")}
        for line in read_log(whole.workdir)
        if line["kind"] == "step"
    }
    # The warmup is 2 of the head's 5 steps and 5 of block5's 10; it begins at peak / (warmup + 1).
    assert rates[1] == {"learning_rate/head": pytest.approx(1e-2 / 3)}
    assert rates[3] == {"learning_rate/head": pytest.approx(1e-2)}
    assert rates[6] == {
        "learning_rate/head": pytest.approx(1e-2 / 6),
        "learning_rate/backbone": pytest.approx(1e-4 / 6),
    }


def test_images_per_s_is_the_speed_of_training_alone(whole):
    last = epochs_of(whole.workdir)[-1]  # its program was compiled in the epoch before
    training_s = 18 / last["images_per_s"]
    rounding_s = 0.005 + training_s * 0.05 / last["images_per_s"]
    assert training_s <= last["seconds"] - EVALUATION_S + rounding_s


def test_a_bug_in_the_report_does_not_cost_the_result(whole, monkeypatch, capsys):
    def write_report(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(api, "write_pages", write_report)
    result = fit(whole.config)
    assert result.report is None and result.model is not None
    assert result.evaluation == read_json(whole.workdir / "eval.json")
    stderr = capsys.readouterr().err
    assert "Traceback" in stderr and "ZeroDivisionError: a bug" in stderr
    words = [f"--{name}={getattr(whole.config, name)}" for name in ("dataset", "workdir", "weights",
             "preprocess", "model", "head", "image_size", "split", "batch_size", "epochs",
             "learning_rate")]  # fmt: skip
    assert main(["train", *words, "--unfreeze", "block5"]) == 1
    assert "Predict  vggjax predict" in capsys.readouterr().out


def test_images_that_a_start_was_trained_on_are_warned_about_in_a_changed_dataset(
    whole, images, tmp_path
):
    changed = shutil.copytree(images, tmp_path / "changed")
    Image.new("RGB", (40, 40), "red").save(next(changed.iterdir()) / "new.png")
    start = {"weights": "imagenet", "start_from": str(whole.workdir), "seed": 7}
    run = prepare_run(make_config(changed, tmp_path / "second", unfreeze=("block5",), **start))
    console = Console(file=io.StringIO(), width=300)
    print_run_summary(console, run)
    trained = {whole.source.ids[k] for k in whole.splits["train"]}
    held_out = {run.source.ids[k] for name in ("val", "test") for k in run.splits[name]}
    assert re.search(
        rf"Warning +{len(held_out & trained)} val and test images have the names of images that",
        console.file.getvalue(),
    )


def test_a_run_starts_from_another_with_its_pixels_if_everything_fits(whole, images, tmp_path):
    start = {"weights": "imagenet", "start_from": str(whole.workdir), "unfreeze": ("block5",)}
    run = prepare_run(make_config(images, tmp_path / "second", **start))
    assert [stage.name for stage in run.stages] == ["head+block5"]
    assert run.config.preprocessing == load_model(whole.workdir)[1].preprocessing
    assert run.config.preprocess == "unit"
    weights = str(whole.workdir / "model.safetensors")
    fresh = prepare_run(make_config(images, tmp_path / "fresh", weights=weights))
    assert fresh.config.preprocessing.mode == "unit"  # the file states it
    first = weights_of(whole.workdir)
    np.testing.assert_array_equal(run.model.fc1.kernel[...], first["fc1/kernel"])
    np.testing.assert_array_equal(run.model.block1_conv1.kernel[...], first["block1_conv1/kernel"])
    for changes, message in [
        ({"head": "gap-4-classes"}, "has `head` gap-8-0.5-3; got gap-4-3. Give `head` gap-8"),
        ({"model": "vgg16"}, "has `model` tiny; got vgg16"),
        ({"preprocess": "torch"}, "trained with `preprocess` unit.* got `preprocess` torch"),
        ({"image_size": 64}, "trained with `image_size` 32"),
        ({"seed": 7}, r"was trained on \d+ of the \d+ images of this run's val and test splits"),
        ({"start_from": str(tmp_path / "nowhere")}, "`start_from`: There is no run folder"),
        ({"start_from": str(images)}, "`start_from`: .* holds no finished model"),
    ]:
        with pytest.raises(ConfigError, match=message):
            prepare_run(make_config(images, tmp_path / "refused", **start | changes))
    (images / "c").rename(images / "d")
    try:
        with pytest.raises(ConfigError, match="other classes: a, b, c; the dataset has a, b, d"):
            prepare_run(make_config(images, tmp_path / "refused", **start))
    finally:
        (images / "d").rename(images / "c")


def test_early_stopping_keeps_the_averaged_weights_of_the_best_epoch(images, tmp_path, monkeypatch):
    kernels = replace_metric(monkeypatch, "val/loss", [0.9, 0.2, 0.5, 0.5, 0.5])
    settings = {"monitor": "val/loss", "patience": 2, "ema": 0.9, "epochs": 9}
    train(make_config(images, tmp_path / "run", **settings))
    assert len(kernels) == 4
    judged, trained = kernels[1]
    np.testing.assert_array_equal(weights_of(tmp_path / "run")["predictions/kernel"], judged)
    assert not np.array_equal(judged, trained)
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {"10", "15", "20"}  # the best one, the latest, and the one before it


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(images, tmp_path):
    config = make_config(images, tmp_path / "run", optimizer="sgd", learning_rate=1e30)
    with pytest.raises(VggjaxError, match="diverged in epoch 1 .* Try `learning_rate` 0.1, or"):
        train(config)
    assert not (tmp_path / "run" / "model.json").exists()


def test_unreadable_images_are_named_and_the_test_split_is_not_read(tmp_path, monkeypatch):
    images, read = make_three_classes(tmp_path), []
    # Decoded step by step: nothing fits the memory.
    config = make_config(images, tmp_path / "run", epochs=1, cache_mb=0, duplicates="ignore")
    splits, ids = prepare_run(config).splits, open_source(config.dataset).ids
    for split in ("train", "val", "test"):
        (images / ids[splits[split][0]]).write_bytes(b"no image")

    def open_and_record(*args, **kwargs):
        source = open_source(*args, **kwargs)
        recorded = lambda i: read.append(i) or source.read(i)  # noqa: E731
        return dataclasses.replace(source, read=recorded, read_as=None)  # all are 8-bit RGB

    monkeypatch.setattr(prepare, "open_source", open_and_record)
    expected = {ids[splits[split][0]]: "not an image" for split in ("train", "val")}
    assert train(config).left_out == expected
    assert set(read) == set(splits["train"]) | set(splits["val"])
    assert train(config).left_out == expected


def test_a_long_epoch_is_saved_inside(images, tmp_path, monkeypatch):
    steps, save = [], Checkpoints.save

    def record(self, state, progress, **options):
        steps.append(progress.step)
        save(self, state, progress, **options)

    monkeypatch.setattr(Checkpoints, "save", record)
    train(make_config(images, tmp_path / "run", epochs=1, checkpoint_minutes=1e-9))
    assert steps == [1, 2, 3, 4, 5]


def test_a_state_that_is_not_finite_is_not_saved_and_its_images_are_named(
    images, tmp_path, monkeypatch, capsys
):
    batches, run_step = [], CompiledStep.__call__

    def record(self, state, batch):
        batches.append(np.asarray(batch["index"]))
        return run_step(self, state, batch)

    def stop(self, *args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(CompiledStep, "__call__", record)
    monkeypatch.setattr(trainer, "is_finite", lambda state: len(batches) != 3)
    monkeypatch.setattr(trainer, "evaluate_split", stop)
    with pytest.raises(KeyboardInterrupt):
        train(make_config(images, tmp_path / "run", epochs=1, checkpoint_minutes=1e-9))
    names = [open_source(str(images)).ids[i] for i in batches[2]]
    line = f"Step 3 is not saved: its weights are not finite. Its images: {', '.join(names)}. Kept:"
    assert f"{line} the checkpoint of step 2." in " ".join(capsys.readouterr().out.split())


def test_ctrl_c_ends_the_command_with_its_code_and_how_to_resume(
    images, tmp_path, monkeypatch, capsys
):
    interrupt_at(monkeypatch, 3, signal.SIGINT)
    line = (
        f"train --dataset {images} --workdir {tmp_path / 'run'} --model tiny --weights none "
        "--unfreeze all --image-size 32 --split 0.6,0.2,0.2 --batch-size 4 --epochs 2 --devices 1"
    )
    assert main(line.split()) == 128 + signal.SIGINT
    stderr = capsys.readouterr().err
    assert stderr.startswith("vggjax: stopped: saved") and stderr.count("\n") == 1
    assert f"--workdir {tmp_path / 'run'} resumes it" in stderr


def test_a_full_disk_is_one_clear_error(images, tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise ValueError("No space left on device [domain=...]")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", fail)
    with pytest.raises(VggjaxError, match="cannot be written: No space left"):
        train(make_config(images, tmp_path / "run", epochs=1))


@pytest.mark.slow
def test_pmap_trains_the_same_network(images, tmp_path):
    for kind in ("jit", "pmap"):
        config = make_config(images, tmp_path / kind, parallel=kind, devices=4, optimizer="sgd")
        train(config)
    jit, pmap = weights_of(tmp_path / "jit"), weights_of(tmp_path / "pmap")
    for name in jit:
        np.testing.assert_allclose(jit[name], pmap[name], rtol=1e-3, atol=1e-4, err_msg=name)
