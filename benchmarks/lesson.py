"""The `flowers` lesson whole: features, a head for 35 epochs, evaluated; against Keras-TF.

    python -m benchmarks.lesson [DATASET] [--photographs 3670] [--epochs 35] [--rounds 5]

DATASET is a folder of one folder per class, of which so many photographs are taken; without one
they are made. Ours is the whole command, run once: `fit` with the recipe `flowers` on random
weights, that is starting, reading, comparing, training, validating each epoch, the test split and
the report, compilation included. Keras-TF does the lesson in two ways, with the images decoded
beforehand, half of them for training, a fifth to validate, the rest to test:

- as the lesson does: `fit` on the whole network with its base frozen, which computes the base for
  every image in every epoch. That takes hours: the median times of its training and evaluation
  steps over the rounds are multiplied by the steps that the lesson has.
- features once: the same steps' time for one `predict` of the base over all images, and `fit` of
  the head alone on features of that shape, all epochs run.
"""

import argparse
import contextlib
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, in_turn, print_table
from benchmarks.peers import installed
from benchmarks.stages import CLASSES, SIZE_PX, make_keras, make_photographs
from vggjax.api import fit
from vggjax.training.recipes import make_config

BATCH = 16


def ours_s(folder: Path, workdir: Path, epochs: int) -> float:
    config = make_config(
        "flowers", dataset=str(folder), workdir=str(workdir), weights="none", epochs=epochs,
        preprocess="caffe", batch_size=BATCH,
    )  # fmt: skip
    begin_s = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        fit(config)
    seconds = time.perf_counter() - begin_s
    told = [line for line in said.getvalue().splitlines() if "features of" in line]
    print(*told, sep="\n", file=sys.stderr)
    return seconds


def keras_s(photographs: int, epochs: int, rounds: int) -> tuple[float, float]:
    """Gives the seconds of both ways, with the base at every step and with features once."""
    model, base, head = make_keras(unfreeze="none")
    rng = np.random.default_rng(0)
    images = rng.normal(0, 60, (BATCH, SIZE_PX, SIZE_PX, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, BATCH)
    steps = {
        "train": lambda: model.train_on_batch(images, labels) is None,
        "test": lambda: model.test_on_batch(images, labels) is None,
        "base": lambda: base.predict_on_batch(images) is None,
    }
    step_s = in_turn(steps, rounds=rounds)
    train, val = photographs // 2, photographs // 5
    test = photographs - train - val
    lesson = (step_s["train"] * train + step_s["test"] * val) * epochs + step_s["test"] * test

    rows = {"train": train, "val": val, "test": test}
    made = {name: rng.random((n, *base.output_shape[1:]), np.float32) for name, n in rows.items()}
    of = {name: rng.integers(0, CLASSES, n) for name, n in rows.items()}
    begin_s = time.perf_counter()
    options = dict(batch_size=BATCH, verbose=0)
    against = (made["val"], of["val"])
    head.fit(made["train"], of["train"], validation_data=against, epochs=epochs, **options)
    head.evaluate(made["test"], of["test"], **options)
    once = step_s["base"] * photographs / BATCH + time.perf_counter() - begin_s
    return lesson / BATCH, once


def measure(
    dataset: Path | None = None, *, photographs: int = 3670, epochs: int = 35, rounds: int = 5
) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="vggjax-lesson-") as scratch:
        folder = Path(scratch) / "photographs"
        if dataset is None:
            make_photographs(folder, photographs)
        else:
            take(dataset, folder, photographs)
        ours = ours_s(folder, Path(scratch) / "run", epochs)
    work = f"`flowers` lesson, {photographs:,} photographs, {SIZE_PX} px, {epochs} epochs"
    lesson, once = ({}, {})
    if installed("keras", "tensorflow"):
        found = keras_s(photographs, epochs, rounds)
        lesson, once = ({"Keras-TF": seconds} for seconds in found)
    yield Row(f"{work}; Keras estimated from its steps", "s", ours, lesson, 0.05)
    yield Row("the same, where Keras computes its features once", "s", ours, once, None)


def take(dataset: Path, folder: Path, photographs: int) -> None:
    """Copies the first photographs of each class, in proportion."""
    files = {kind: sorted(kind.iterdir()) for kind in sorted(dataset.iterdir()) if kind.is_dir()}
    total = sum(map(len, files.values()))
    for kind, paths in files.items():
        (folder / kind.name).mkdir(parents=True)
        for path in paths[: round(len(paths) * photographs / total)]:
            shutil.copy(path, folder / kind.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--photographs", type=int, default=3670)
    parser.add_argument("--epochs", type=int, default=35)
    parser.add_argument("--rounds", type=int, default=5)
    print_table(measure(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
