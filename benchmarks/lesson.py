"""The `flowers` lesson whole: features, a head for 35 epochs, evaluated; against Keras-TF.

    python -m benchmarks.lesson DATASET [--photographs 60] [--epochs 35] [--keras-epochs 2]

DATASET is a folder of one folder per class, of which the first photographs of each are taken. Ours
is `fit` with the recipe `flowers` on random weights: reading, comparing, training, evaluating each
epoch, the test split and the report, compilation included. Keras-TF does the same in two ways, each
with the pictures decoded before, half of them for training, a fifth to validate, the rest to test:

- as the lesson does: `fit` on the whole network with its base frozen, which computes the base for
  every picture in every epoch. Only `--keras-epochs` are run after the first, and their median
  stands for the epochs left out: the total is printed as an estimate.
- features once: `predict` on the base, then `fit` on the head alone, all epochs run.
"""

import argparse
import contextlib
import io
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.stages import SIZE_PX, make_keras
from vggjax.data.preprocess import Preprocessing, resize_image
from vggjax.data.sources import open_source
from vggjax.run import fit
from vggjax.training.recipes import make_config


def ours_s(folder: Path, workdir: Path, epochs: int) -> float:
    config = make_config(
        "flowers", dataset=str(folder), workdir=str(workdir), weights="none", epochs=epochs,
        preprocess="caffe", batch_size=16,
    )  # fmt: skip
    begin_s = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        fit(config)
    seconds = time.perf_counter() - begin_s
    told = [line for line in said.getvalue().splitlines() if "features of" in line]
    print(*(f"    {line}" for line in told), sep="\n")
    return seconds


def load(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    import keras

    source = open_source(str(folder))
    pixels = Preprocessing("caffe", SIZE_PX)
    images = [resize_image(source.read(i).pixels, pixels) for i in range(len(source))]
    order = np.random.default_rng(0).permutation(len(source))
    images = keras.applications.vgg16.preprocess_input(np.stack(images).astype(np.float32)[order])
    return images, source.labels[order]


def cut(rows: np.ndarray) -> list[np.ndarray]:
    return np.split(rows, [len(rows) // 2, len(rows) * 7 // 10])


def keras_lesson_s(images: np.ndarray, labels: np.ndarray, epochs: int, run: int) -> float:
    import keras

    (train, val, test), (of_train, of_val, of_test) = cut(images), cut(labels)
    model, _, _ = make_keras(unfreeze="none")
    times: list[float] = []

    class Times(keras.callbacks.Callback):
        def on_epoch_begin(self, *_) -> None:
            times.append(time.perf_counter())

        def on_epoch_end(self, *_) -> None:
            times[-1] = time.perf_counter() - times[-1]

    options = dict(batch_size=16, verbose=0, callbacks=[Times()])
    run = min(1 + run, epochs)
    model.fit(train, of_train, validation_data=(val, of_val), epochs=run, **options)
    begin_s = time.perf_counter()
    model.evaluate(test, of_test, batch_size=16, verbose=0)
    later = statistics.median(times[1:]) * (epochs - 1) if epochs > 1 else 0.0
    return times[0] + later + time.perf_counter() - begin_s


def keras_once_s(images: np.ndarray, labels: np.ndarray, epochs: int) -> float:
    begin_s = time.perf_counter()
    _, base, head = make_keras(unfreeze="none")
    (train, val, test), (of_train, of_val, of_test) = (
        cut(base.predict(images, batch_size=16, verbose=0)),
        cut(labels),
    )
    options = dict(batch_size=16, verbose=0)
    head.fit(train, of_train, validation_data=(val, of_val), epochs=epochs, **options)
    head.evaluate(test, of_test, **options)
    return time.perf_counter() - begin_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--photographs", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=35)
    parser.add_argument("--keras-epochs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vggjax-lesson-") as scratch:
        folder = Path(scratch) / "photographs"
        classes = sorted(path for path in options.dataset.iterdir() if path.is_dir())
        for kind in classes:
            (folder / kind.name).mkdir(parents=True)
            for path in sorted(kind.iterdir())[: options.photographs // len(classes)]:
                shutil.copy(path, folder / kind.name)
        print(f"{options.photographs} photographs at {SIZE_PX} px, {options.epochs} epochs")
        ours = ours_s(folder, Path(scratch) / "run", options.epochs)
        images, labels = load(folder)
        once = keras_once_s(images, labels, options.epochs)
        lesson = keras_lesson_s(images, labels, options.epochs, options.keras_epochs)
    print(f"  ours {ours:.1f} s")
    print(
        f"  Keras-TF, base at every epoch: {lesson:.1f} s (estimated); "
        f"ours / it {ours / lesson:.3f}"
    )
    print(f"  Keras-TF, features once: {once:.1f} s; ours / it {ours / once:.3f}")


if __name__ == "__main__":
    main()
