"""A run from its first step to its saved model: killed and resumed, refused, stopped, chosen."""

import dataclasses
import os
import signal
import time

import jax
import numpy as np
import pytest
from support.tiny_run import make_images

from vggjax.cli.main import main
from vggjax.data.sources.open import open_source
from vggjax.errors import ConfigError, DataError, VggjaxError
from vggjax.training import prepare, trainer
from vggjax.training.config import Config
from vggjax.training.run_dir.checkpoint import Checkpoints
from vggjax.training.run_dir.log import read_log
from vggjax.training.run_dir.saved_model import load_model
from vggjax.training.signals import Interrupted
from vggjax.training.trainer import train
from vggjax.weights.weight_file import read_weights, write_weights


@pytest.fixture
def images(tmp_path, monkeypatch):
    return make_images(tmp_path / "images", ("a", "b", "c"), each=10)


def make_config(dataset, workdir, **settings):
    defaults = dict(
        model="tiny", weights="none", head="gap-8-0.5-classes", image_size=32, unfreeze="all",
        split="0.6,0.2,0.2", batch_size=4, epochs=3, log_every_steps=2, learning_rate=1e-2,
        devices=1,
    )  # fmt: skip
    return Config(dataset=str(dataset), workdir=str(workdir), **defaults | settings)


def pretend_pretrained(tmp_path, tiny_arch):
    """Writes a weight file for the tiny network, as if it had been learned before."""
    rng = np.random.default_rng(0)
    weights = {
        name: {
            "kernel": rng.normal(0, 0.2, (3, 3, *io)).astype(np.float32),
            "bias": np.zeros(io[1], np.float32),
        }
        for name, io in tiny_arch.conv_channels().items()
    }
    path = tmp_path / "tiny.safetensors"
    write_weights(path, weights)
    return path


def interrupt_at(monkeypatch, step, signum=signal.SIGTERM):
    """Sends this process a signal while the given step is being computed."""
    make = trainer.make_train_step

    def make_train_step(*args, **kwargs):
        train_step = make(*args, **kwargs)

        def interrupted(state, batch):
            if int(state.step) == step - 1:
                os.kill(os.getpid(), signum)
            return train_step(state, batch)

        return interrupted

    monkeypatch.setattr(trainer, "make_train_step", make_train_step)


def weights_of(workdir):
    weights = read_weights(workdir / "model.safetensors")
    return {f"{layer}/{name}": a for layer, arrays in weights.items() for name, a in arrays.items()}


def assert_same_weights(one, other):
    ours, theirs = weights_of(one), weights_of(other)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


TIMES = ("images_per_s", "seconds")


def log_without_times(workdir):
    lines = [line for line in read_log(workdir) if line["kind"] != "resume"]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


# 18 training images make 5 steps an epoch: 7 is inside the second stage, 5 is the first's end.
@pytest.mark.parametrize("step", [3, 5, 7, 10])
def test_a_run_interrupted_at_any_step_ends_with_the_same_weights_and_log(
    images, tmp_path, monkeypatch, tiny_arch, step
):
    settings = {"weights": str(pretend_pretrained(tmp_path, tiny_arch)), "unfreeze": "block5"}
    whole = make_config(images, tmp_path / "whole", **settings)
    train(whole)
    broken = make_config(images, tmp_path / "broken", **settings)
    with monkeypatch.context() as patched:
        interrupt_at(patched, step)
        with pytest.raises(Interrupted) as caught:
            train(broken)
    assert caught.value.signum == signal.SIGTERM
    assert str(tmp_path / "broken") in str(caught.value)
    assert not (tmp_path / "broken" / "model.json").exists()
    train(broken)
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    for one, other in zip(
        log_without_times(tmp_path / "whole"), log_without_times(tmp_path / "broken"), strict=True
    ):
        assert one.keys() == other.keys()
        # Sums of an epoch go through JSON at the kill: the weights are the same to the bit.
        numbers = [k for k, value in one.items() if isinstance(value, float)]
        assert [one[k] for k in numbers] == pytest.approx([other[k] for k in numbers], rel=1e-6)


def test_handlers_of_signals_are_put_back(images, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    train(make_config(images, tmp_path / "run", epochs=1))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_finished_run_is_not_trained_again(images, tmp_path, capsys):
    config = make_config(images, tmp_path / "run", epochs=1)
    train(config)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    again = train(config)
    assert "trained already" in capsys.readouterr().out
    assert (tmp_path / "run" / "log.jsonl").read_text() == log
    np.testing.assert_array_equal(
        again.model.predictions.kernel.get_value(),
        weights_of(tmp_path / "run")["predictions/kernel"],
    )


def test_other_settings_for_the_same_workdir_are_refused_by_name(images, tmp_path):
    train(make_config(images, tmp_path / "run", epochs=1))
    with pytest.raises(ConfigError, match=r"`epochs` was 1, now 2"):
        train(make_config(images, tmp_path / "run", epochs=2))


def test_other_images_for_the_same_workdir_are_refused(images, tmp_path):
    config = make_config(images, tmp_path / "run", epochs=1)
    train(config)
    (images / "a" / "00.png").rename(images / "b" / "new.png")
    with pytest.raises(DataError, match="not the one that .* was trained on"):
        train(config)


def test_a_folder_of_other_things_is_not_taken_for_a_run(images, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="holds files but no run"):
        train(make_config(images, tmp_path / "home"))
    assert os.listdir(tmp_path / "home") == ["letter.txt"]


def test_early_stopping_keeps_the_best_weights(images, tmp_path, monkeypatch):
    # The second evaluation is the best; the weights of that epoch are to be kept.
    accuracies = iter([0.2, 0.9, 0.5, 0.5, 0.5])
    evaluate = trainer.evaluate_split
    seen = []

    def pretend(run, split, eval_step, state):
        seen.append(np.asarray(state.params["predictions"]["kernel"].get_value()).copy())
        return evaluate(run, split, eval_step, state) | {"val/accuracy": next(accuracies)}

    monkeypatch.setattr(trainer, "evaluate_split", pretend)
    train(make_config(images, tmp_path / "run", epochs=9, patience=2, schedule="constant"))
    assert len(seen) == 4
    np.testing.assert_array_equal(weights_of(tmp_path / "run")["predictions/kernel"], seen[1])
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {"10", "20"}  # the best, and the latest


def test_a_loss_that_is_not_finite_ends_the_run_and_says_what_to_do(images, tmp_path):
    config = make_config(images, tmp_path / "run", optimizer="sgd", learning_rate=1e30)
    with pytest.raises(VggjaxError, match="diverged in epoch 1 .* Try `learning_rate` 0.1, or"):
        train(config)
    assert not (tmp_path / "run" / "model.json").exists()


def test_the_test_split_is_not_read_while_training(images, tmp_path, monkeypatch):
    read, opened = [], prepare.open_source

    def open_source(*args, **kwargs):
        source = opened(*args, **kwargs)
        return dataclasses.replace(source, read=lambda i: read.append(i) or source.read(i))

    monkeypatch.setattr(prepare, "open_source", open_source)
    config = make_config(images, tmp_path / "run", epochs=1, duplicates="ignore")
    train(config)
    splits = prepare.prepare_run(config).splits
    assert set(read) == set(splits["train"]) | set(splits["val"])


@pytest.mark.parametrize("cache_mb", [0, 64])
def test_unreadable_images_are_left_out_and_named_also_by_a_rerun(images, tmp_path, cache_mb):
    config = make_config(images, tmp_path / "run", epochs=1, cache_mb=cache_mb)
    splits = prepare.prepare_run(config).splits
    ids = open_source(config.dataset).ids
    for split in ("train", "val", "test"):
        (images / ids[splits[split][0]]).write_bytes(b"no image")
    expected = {ids[splits[split][0]]: "not an image" for split in ("train", "val")}
    assert train(config).info.left_out == expected
    assert train(config).info.left_out == expected


def test_a_run_folder_inside_the_data_is_refused(images):
    with pytest.raises(ConfigError, match="is inside the dataset"):
        train(make_config(images, images / "runs" / "1"))
    assert not (images / "runs").exists()


def test_a_batch_larger_than_the_data_is_the_data(images, tmp_path):
    run = prepare.prepare_run(make_config(images, tmp_path / "run", batch_size=10**9))
    assert (run.batch_size, run.steps_per_epoch) == (18, 1)


def test_a_runs_own_model_as_weights_gets_the_pixels_that_it_was_trained_on(images, tmp_path):
    train(make_config(images, tmp_path / "first", epochs=1, preprocess="unit"))
    weights = str(tmp_path / "first" / "model.safetensors")
    second = prepare.prepare_run(make_config(images, tmp_path / "second", weights=weights))
    assert second.config.preprocessing.mode == "unit"


def test_images_per_s_measure_training_alone(images, tmp_path, monkeypatch):
    evaluate = trainer.evaluate_split
    monkeypatch.setattr(trainer, "evaluate_split", lambda *args: time.sleep(2) or evaluate(*args))
    train(make_config(images, tmp_path / "run", epochs=2))
    second = [line for line in read_log(tmp_path / "run") if line["kind"] == "epoch"][1]
    assert second["seconds"] > 2
    assert second["images_per_s"] > 18 / 2


def test_a_long_epoch_is_saved_in_its_middle(images, tmp_path, monkeypatch):
    saved = []
    save = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints,
        "save",
        lambda self, state, position, **kwargs: (
            saved.append(position.step) or save(self, state, position, **kwargs)
        ),
    )
    train(make_config(images, tmp_path / "run", epochs=1, checkpoint_minutes=1e-9))
    assert saved == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_with_its_code_and_says_how_to_go_on(
    images, tmp_path, monkeypatch, capsys, signum, code
):
    interrupt_at(monkeypatch, 3, signum)
    line = (
        f"train --dataset {images} --workdir {tmp_path / 'run'} --model tiny --weights none "
        "--unfreeze all --image-size 32 --split 0.6,0.2,0.2 --batch-size 4 --epochs 2"
    )
    assert main(line.split()) == code
    said = capsys.readouterr().err
    assert said.startswith("vggjax: stopped: saved") and said.count("\n") == 1


def test_a_full_disk_is_one_clear_error(images, tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise ValueError("No space left on device [domain=...]")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", fail)
    with pytest.raises(VggjaxError, match="cannot be written: No space left"):
        train(make_config(images, tmp_path / "run", epochs=1))


def test_pmap_trains_the_same_network(images, tmp_path, monkeypatch):
    for kind in ("jit", "pmap"):
        train(
            make_config(
                images, tmp_path / kind, parallel=kind, devices=None, epochs=2, optimizer="sgd"
            )
        )
    assert len(jax.devices()) == 4
    ours, theirs = weights_of(tmp_path / "jit"), weights_of(tmp_path / "pmap")
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_the_saved_model_gives_the_probabilities_that_it_was_evaluated_with(images, tmp_path):
    trained = train(make_config(images, tmp_path / "run", epochs=1))
    model, info = load_model(tmp_path / "run")
    batch = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    np.testing.assert_array_equal(model(batch), trained.model(batch))
    assert info == trained.info
