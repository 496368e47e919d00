"""Time the whole `flowers` lesson, a head trained for 35 epochs, against Keras-TF.

    python -m benchmarks.lesson [--photos FOLDER] [--photographs 3670] [--epochs 35] [--rounds 5]

FOLDER has one folder per class, from which `--photographs` are used; by default they are generated.
vggjax runs the whole command once: `fit` with the recipe `flowers` on random weights, from reading
the folder to the test split and the report, with compilation. Keras-TF trains in two ways, on
images decoded beforehand, half of them for training, a fifth for validation, the rest for testing:

- as in the lesson: `fit` on the whole network with its base frozen, which computes the base for
  every image in every epoch. That takes hours, so the median times of its training and evaluation
  steps are multiplied by the lesson's number of steps.
- features once: the time of one `predict` of the base over all images, from such steps, and of a
  full `fit` of the head alone on features of that shape.
"""

import contextlib
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, print_measure, time_in_turn
from benchmarks.peers import installed
from benchmarks.stages import CLASSES, SIZE_PX, make_keras, make_photographs
from vggjax.api import fit
from vggjax.training.recipes import make_config

BATCH = 16


def time_vggjax(folder: Path, workdir: Path, epochs: int) -> float:
    config = make_config(
        "flowers", dataset=str(folder), workdir=str(workdir), weights="none", epochs=epochs,
        preprocess="caffe", batch_size=BATCH,
    )  # fmt: skip
    begin_s = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()) as output:
        fit(config)
    seconds = time.perf_counter() - begin_s
    timings = [line for line in output.getvalue().splitlines() if "features of" in line]
    print(*timings, sep="\n", file=sys.stderr)
    return seconds


def time_keras(photographs: int, epochs: int, rounds: int) -> tuple[float, float]:
    """Return the seconds of both ways: the base at every step, and features once."""
    model, base, head = make_keras(unfreeze="none")
    rng = np.random.default_rng(0)
    images = rng.normal(0, 60, (BATCH, SIZE_PX, SIZE_PX, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, BATCH)
    steps = {
        "train": lambda: model.train_on_batch(images, labels) is None,
        "test": lambda: model.test_on_batch(images, labels) is None,
        "base": lambda: base.predict_on_batch(images) is None,
    }
    step_s = time_in_turn(steps, rounds=rounds)
    train, val = photographs // 2, photographs // 5
    test = photographs - train - val
    lesson = (step_s["train"] * train + step_s["test"] * val) * epochs + step_s["test"] * test

    rows = {"train": train, "val": val, "test": test}
    features = {
        name: rng.random((n, *base.output_shape[1:]), np.float32) for name, n in rows.items()
    }
    classes = {name: rng.integers(0, CLASSES, n) for name, n in rows.items()}
    begin_s = time.perf_counter()
    options = dict(batch_size=BATCH, verbose=0)
    validation = (features["val"], classes["val"])
    head.fit(
        features["train"], classes["train"], validation_data=validation, epochs=epochs, **options
    )
    head.evaluate(features["test"], classes["test"], **options)
    once = step_s["base"] * photographs / BATCH + time.perf_counter() - begin_s
    return lesson / BATCH, once


def measure(
    *, photos: Path | None = None, photographs: int = 3670, epochs: int = 35, rounds: int = 5
) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="vggjax-lesson-") as scratch:
        folder = Path(scratch) / "photographs"
        if photos is None:
            make_photographs(folder, photographs)
        else:
            copy_photographs(photos, folder, photographs)
        seconds = time_vggjax(folder, Path(scratch) / "run", epochs)
    work = f"`flowers` lesson, {photographs:,} photographs, {SIZE_PX} px, {epochs} epochs"
    lesson, once = {}, {}
    if installed("keras", "tensorflow"):
        lesson, once = ({"Keras-TF": s} for s in time_keras(photographs, epochs, rounds))
    yield Row(f"{work}; Keras estimated from its steps", "s", seconds, lesson, 0.05)
    yield Row("the same, where Keras computes its features once", "s", seconds, once, None)


def copy_photographs(photos: Path, folder: Path, photographs: int) -> None:
    """Copy the first photographs of each class, in proportion."""
    files = {kind: sorted(kind.iterdir()) for kind in sorted(photos.iterdir()) if kind.is_dir()}
    total = sum(map(len, files.values()))
    for kind, paths in files.items():
        (folder / kind.name).mkdir(parents=True)
        for path in paths[: round(len(paths) * photographs / total)]:
            shutil.copy(path, folder / kind.name)


if __name__ == "__main__":
    print_measure(__doc__, measure)
