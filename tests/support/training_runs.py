"""Tiny trainings: their settings, faults on purpose, and what two of them must have in common."""

import os
import signal
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
import pytest

from support.tiny_run import make_images
from vggjax.models.arch import Arch
from vggjax.training import stage_loop, trainer
from vggjax.training.config import Config
from vggjax.training.run_dir.log import read_log
from vggjax.weights.weight_file import read_weights, write_weights

TIMES = ("images_per_s", "seconds")
"""Keys of a log line that differ from run to run."""


def make_config(dataset: Path, workdir: Path, **settings) -> Config:
    """Return the settings of a tiny run: 18 of 30 images train, in 5 steps a pass."""
    defaults = dict(
        model="tiny", weights="none", head="gap-8-0.5-classes", image_size=32, unfreeze="all",
        split="0.6,0.2,0.2", batch_size=4, epochs=3, log_every_steps=2, learning_rate=1e-2,
        devices=1,
    )  # fmt: skip
    return Config(dataset=str(dataset), workdir=str(workdir), **defaults | settings)


def make_three_classes(folder: Path) -> Path:
    """Write 30 images in the classes a, b and c."""
    return make_images(folder / "images", ("a", "b", "c"), each=10)


def pretend_pretrained(folder: Path, arch: Arch) -> Path:
    """Write a weight file for a network, as if it had been pretrained."""
    rng = np.random.default_rng(0)
    weights = {
        name: {
            "kernel": rng.normal(0, 0.2, (3, 3, *io)).astype(np.float32),
            "bias": np.zeros(io[1], np.float32),
        }
        for name, io in arch.conv_channels().items()
    }
    path = folder / f"{arch.name}.safetensors"
    write_weights(path, weights)
    return path


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, signum: int = signal.SIGTERM) -> None:
    """Send this process a signal, once, in the call that reaches `step` or steps over it."""
    make = stage_loop.make_train_step
    sent = []

    def make_train_step(*args, **kwargs):
        train_step = make(*args, **kwargs)

        def interrupted(state, batch):
            if not sent and int(state.step) >= step - 1:
                sent.append(step)
                os.kill(os.getpid(), signum)
            return train_step(state, batch)

        return interrupted

    monkeypatch.setattr(stage_loop, "make_train_step", make_train_step)


def replace_metric(
    monkeypatch: pytest.MonkeyPatch, name: str, values: Iterable[float]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Let evaluations report the values in turn; return the last kernels as they come.

    Each is a pair: the one that was judged, and the one that trains on.
    """
    evaluate, values, kernels = trainer.evaluate_split, iter(values), []

    def evaluate_split(run, split, eval_step, state):
        params, _ = state.eval_params
        pair = (params["predictions"]["kernel"], state.params["predictions"]["kernel"])
        kernels.append(tuple(np.array(jax.device_get(kernel[...])) for kernel in pair))
        return evaluate(run, split, eval_step, state) | {name: next(values)}

    monkeypatch.setattr(trainer, "evaluate_split", evaluate_split)
    return kernels


def weights_of(workdir: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a run's model, {layer/parameter: array}."""
    weights = read_weights(workdir / "model.safetensors")
    return {f"{layer}/{name}": a for layer, arrays in weights.items() for name, a in arrays.items()}


def assert_same_weights(workdir: Path, other: Path) -> None:
    """Check that two runs ended with the same weights, to the bit."""
    expected, received = weights_of(workdir), weights_of(other)
    assert expected.keys() == received.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(array, received[name], err_msg=name)


def assert_same_log(workdir: Path, other: Path) -> None:
    """Check that two runs logged the same, up to times and the rounding of sums in JSON."""
    logs = [log_without_times(folder) for folder in (workdir, other)]
    for expected, received in zip(*logs, strict=True):
        assert expected.keys() == received.keys()
        numbers = [name for name, value in expected.items() if isinstance(value, float)]
        for name in numbers:
            message = f"{name} of {expected}"
            assert expected[name] == pytest.approx(received[name], rel=1e-6), message


def log_without_times(workdir: Path) -> list[dict]:
    lines = [line for line in read_log(workdir) if line["kind"] != "resume"]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def epochs_of(workdir: Path) -> list[dict]:
    """Return the log's lines of epochs."""
    return [line for line in read_log(workdir) if line["kind"] == "epoch"]
