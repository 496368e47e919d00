"""Hold features and heads on the published weights against Keras and PyTorch, on photographs.

    python -m benchmarks.truth [NAME ...] --data FOLDER --weights FILE [--torch FILE]

NAME is features, torch, heads or heads-own; without one, all are measured. FOLDER has the folders
`breeds` and `flowers` of benchmarks.lessons, FILE is the base of VGG16 as Keras publishes it, and
that of `--torch` torchvision's `features.*` in a safetensors file.

- features: block5_pool of `--photographs` photographs, whole ways: Keras' load_img,
  preprocess_input and VGG16 against ours.
- heads: ten settings of a head, trained by Keras on our features and by us on Keras' features, with
  the same splits. Both draw initial weights, of the same distributions, dropout and order in their
  own ways, so accuracies are compared over seeds.
- heads-own: the same, where Keras' initial weights are its defaults, as its users have them.
- torch: torchvision's layers built by hand, on torchvision's pixels, against ours.

The table goes into docs/results.md; lines that were not measured stay. Where a library is missing
its lines are skipped.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.heads import BATCH, HeadTrainer, Photographs, features_of
from benchmarks.lessons import ROOT
from benchmarks.measure import describe_machine
from benchmarks.peers import installed, torch_base
from benchmarks.tables import (
    interval_half_width,
    markdown_table,
    part_of,
    percent,
    points,
    replace_part,
)
from vggjax.data.images.preprocess import Preprocessing, preprocess

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


class Row(NamedTuple):
    """One line of the table."""

    what: str
    ours: str
    theirs: str
    difference: str
    holds: bool

    def cells(self) -> list[str]:
        return [self.what, self.ours, self.theirs, self.difference, "yes" if self.holds else "no"]


HEADINGS = ("what", "ours", "theirs", "difference", "agrees")

HEADS: dict[str, dict[str, Any]] = {
    "gap-classes": dict(optimizer="adam", learning_rate=1e-3),
    "gap-classes, sgd": dict(optimizer="sgd", learning_rate=1e-3),
    "gap-64-classes": dict(optimizer="adam", learning_rate=1e-3),
    "gap-256-0.5-classes": dict(optimizer="adam", learning_rate=1e-3),
    "gap-256-0.5-classes, slow": dict(optimizer="adam", learning_rate=1e-4),
    "gap-256-0.5-classes, rmsprop": dict(optimizer="rmsprop", learning_rate=1e-3),
    "flatten-classes": dict(optimizer="adam", learning_rate=1e-4),
    "flatten-64-classes": dict(optimizer="rmsprop", learning_rate=1e-4),
    "avg2-128-0.4-classes": dict(optimizer="nadam", learning_rate=1e-3),
    "gap-128-64-classes": dict(optimizer="nadam", learning_rate=3e-4),
}
"""Head, with a word where one occurs twice -> optimizer and rate; all train for `EPOCHS`."""

EPOCHS = 20


def difference_row(what: str, ours: np.ndarray, theirs: np.ndarray) -> Row:
    """Return the line of two arrays that should agree within 1e-4 of the largest value."""
    largest = float(np.abs(theirs).max())
    error = float(np.abs(ours - theirs).max()) / largest
    return Row(
        what,
        f"largest {float(np.abs(ours).max()):.5g}",
        f"largest {largest:.5g}",
        f"{error:.1e} of the largest value",
        error < 1e-4,
    )


def keras_features(paths: Sequence[Path], weights: Path, size: int) -> np.ndarray:
    """Return block5_pool of image files by Keras alone."""
    import keras

    base = keras.applications.VGG16(
        weights=str(weights), include_top=False, input_shape=(size, size, 3)
    )
    load, parts = keras.utils.load_img, []
    for first in range(0, len(paths), BATCH):
        batch = [
            keras.utils.img_to_array(load(path, target_size=(size, size), interpolation="bilinear"))
            for path in paths[first : first + BATCH]
        ]
        pixels = keras.applications.vgg16.preprocess_input(np.stack(batch))
        parts.append(np.asarray(base.predict_on_batch(pixels)))
    return np.concatenate(parts)


def paths_of(photographs: Photographs) -> list[Path]:
    """Return the files of the photographs."""
    paths = [photographs.source.path(row) for row in photographs.rows.tolist()]
    return [path for path in paths if path is not None]


def measure_features(folder: Path, weights: Path, count: int) -> Iterator[Row]:
    """Yield the line of the features of whole photographs at 224 px."""
    if not installed("keras", "tensorflow"):
        return
    photographs = Photographs(folder, count)
    ours = features_of(photographs.pixels(Preprocessing()), weights)
    theirs = keras_features(paths_of(photographs), weights, 224)
    what = f"block5_pool of {len(ours)} photographs of `{folder.name}`, 224 px, Keras"
    yield difference_row(what, ours, theirs)


def train_keras(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    head: str,
    seed: int,
    own_start: bool = False,
    **settings: Any,
) -> Any:
    """Train a head of the text form with Keras; return the function of features to classes.

    The initial weights have our distributions, or with `own_start` Keras' default, Glorot's.
    """
    import keras

    keras.utils.set_random_seed(seed)
    pooling, *widths = head.split("-")[:-1]
    layers: list[Any] = [keras.layers.Input(features.shape[1:])]
    if pooling == "avg2":
        layers.append(keras.layers.AveragePooling2D(2))
    gap = pooling == "gap"
    layers.append(keras.layers.GlobalAveragePooling2D() if gap else keras.layers.Flatten())
    dropout = [float(word) for word in widths if "." in word]
    width_in = keras.Sequential(layers).output_shape[-1]

    def start(stddev: float) -> Any:  # as in models/network.py
        return "glorot_uniform" if own_start else keras.initializers.RandomNormal(stddev=stddev)

    for word in widths:
        if "." not in word:
            he = start((2 / width_in) ** 0.5)
            layers.append(keras.layers.Dense(int(word), activation="relu", kernel_initializer=he))
            width_in = int(word)
            layers += [keras.layers.Dropout(rate) for rate in dropout]
    layers.append(keras.layers.Dense(classes, activation="softmax", kernel_initializer=start(0.01)))
    rate = settings["learning_rate"]
    optimizers = {
        "adam": keras.optimizers.Adam, "nadam": keras.optimizers.Nadam,
        "rmsprop": keras.optimizers.RMSprop,
        "sgd": lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
    }  # fmt: skip
    model = keras.Sequential(layers)
    model.compile(optimizers[settings["optimizer"]](rate), "sparse_categorical_crossentropy")
    model.fit(features, labels, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return lambda x: np.asarray(model.predict_on_batch(x)).argmax(1)


def measure_heads(
    folder: Path, weights: Path, count: int, *, work: Path, seeds: int, own_start: bool
) -> Iterator[Row]:
    """Yield a line for each setting of a head, on flowers of 128 px."""
    if not installed("keras", "tensorflow"):
        return
    photographs = Photographs(folder, count)
    labels, classes = photographs.labels, len(photographs.class_names)
    images = photographs.pixels(Preprocessing(image_size=128))
    kept = work / f"{folder.name}-{len(photographs)}-right.npy"  # mistakes.py computes it too
    ours = features_of(images, weights, kept=kept)
    theirs = keras_features(paths_of(photographs), weights, 128)
    for name, settings in HEADS.items():
        head = name.split(",")[0]
        trainer = HeadTrainer(
            4, classes, head=head, epochs=EPOCHS, schedule="constant", warmup_epochs=0.0,
            augment="none", **settings,
        )  # fmt: skip
        accuracies: tuple[list[float], list[float]] = ([], [])
        for seed in range(seeds):
            train, test = photographs.split(seed)
            by_us = trainer.train(theirs[train], labels[train], seed=seed)
            by_keras = train_keras(
                ours[train], labels[train], classes, head=head, seed=seed, own_start=own_start,
                **settings,
            )  # fmt: skip
            for values, classify, x in (
                (accuracies[0], by_us, theirs), (accuracies[1], by_keras, ours)
            ):  # fmt: skip
                values.append(float((classify(x[test]) == labels[test]).mean()))
        what = f"`{head}`, {settings['optimizer']} at {settings['learning_rate']:g}"
        what += ", Keras' own initial weights" if own_start else ""
        yield head_row(what, *accuracies, images=round(0.3 * len(photographs)))


def head_row(what: str, ours: list[float], theirs: list[float], *, images: int) -> Row:
    """Return the line of a head; accuracies agree if their interval of the difference has 0."""
    difference = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = float(np.mean(difference))
    # A seed's difference is a multiple of an image, so an interval of equal ones would be 0.
    margin = max(interval_half_width(difference), 1 / images)
    return Row(what, percent(ours), percent(theirs), points(difference), abs(mean) <= margin)


def measure_torch(folder: Path, file: Path, count: int) -> Iterator[Row]:
    """Yield the line of torchvision's base, whose layers are built by hand."""
    if not installed("torch", "safetensors"):
        return
    import torch
    from safetensors.torch import load_file

    photographs = Photographs(folder, count)
    images = photographs.pixels(Preprocessing())
    features = features_of(images, file, pixels=lambda x: preprocess(x, "torch"))
    base, _ = torch_base("vgg16")
    state = {name.removeprefix("features."): x for name, x in load_file(str(file)).items()}
    base.load_state_dict({name: x for name, x in state.items() if name[0].isdigit()})
    mean, std = (torch.tensor(v) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    theirs = []
    with torch.inference_mode():
        for first in range(0, len(images), 8):
            x = torch.from_numpy(images[first : first + 8]).float() / 255
            x = ((x - mean) / std).permute(0, 3, 1, 2)
            theirs.append(base(x).permute(0, 2, 3, 1).numpy())
    what = f"block5_pool of {len(images)} photographs of `{folder.name}`, 224 px, torch"
    yield difference_row(what, features, np.concatenate(theirs))


def write_rows(page: Path, rows: Sequence[Row]) -> None:
    """Write lines into the page's table; those of other measurements stay."""
    lines = part_of(page, "truth").splitlines()
    old = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")][2:]
    table = {cells[0]: cells for cells in old} | {row.what: row.cells() for row in rows}
    text = f"{markdown_table(HEADINGS, list(table.values()))}\n\n{describe_machine()}"
    replace_part(page, "truth", text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = ["features", "torch", "heads", "heads-own"]
    parser.add_argument("name", nargs="*", choices=[*choices, []], default=[])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--torch", type=Path)
    parser.add_argument("--photographs", type=int, default=200)
    parser.add_argument("--flowers", type=int, default=1000, help="photographs for the heads")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("runs/mistakes"))
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md")
    args = parser.parse_args(argv)
    rows: list[Row] = []

    def add(measured: Iterator[Row]) -> None:
        for row in measured:
            rows.append(row)
            print(*row.cells(), sep=" | ", flush=True)
            write_rows(args.page, rows)

    names = args.name or choices
    breeds, flowers = args.data / "breeds", args.data / "flowers"
    if "features" in names:
        add(measure_features(breeds, args.weights, args.photographs))
    if "torch" in names and args.torch:
        add(measure_torch(breeds, args.torch, args.photographs))
    for name in [name for name in names if name.startswith("heads")]:
        heads = measure_heads(
            flowers, args.weights, args.flowers, work=args.work, seeds=args.seeds,
            own_start=name == "heads-own",
        )  # fmt: skip
        add(heads)


if __name__ == "__main__":
    main()
