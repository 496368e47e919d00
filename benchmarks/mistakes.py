"""Measure what common mistakes cost, with one base, one head and the same splits.

    python -m benchmarks.mistakes [flowers breeds] --data FOLDER --weights FILE [--photographs 1000]

FOLDER has a folder of photographs per dataset, FILE is the base of VGG16 as Keras publishes it. The
features of each kind of pixels are computed once and kept in the work folder; then every seed draws
a split, 70 % to train and 30 % to test, and trains the package's default head for 20 epochs, once
rightly and once with each mistake. Differences are between the two trainings of one seed. The last
column trains rightly and makes the mistake only with the test images, as a service does that
prepares images otherwise than the training did. The table goes into docs/mistakes.md.

`--runs FOLDER` has run folders of networks with batch normalization, from benchmarks.lessons: their
test images are also classified with the statistics of each batch in place of the running ones.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.heads import HeadTrainer, Photographs, features_of
from benchmarks.lessons import ROOT
from benchmarks.measure import describe_machine
from benchmarks.tables import markdown_table, percent, points, replace_part
from vggjax.data.images.preprocess import Preprocessing, preprocess, resize_image
from vggjax.training.freezing import label_layers, set_training_mode
from vggjax.training.run_dir.run_result import load_run_result

MEAN_BGR = np.array([103.939, 116.779, 123.68], np.float32)


class Pixels(NamedTuple):
    """One way of preparing images."""

    what: str
    prepare: Callable[[np.ndarray], Any] = preprocess
    resize: str = "squash"
    interpolation: str = "bilinear"


RIGHT = Pixels("as the weights expect")

MISTAKES = {
    "unit": Pixels("x/255 in place of Keras' pixels", lambda x: preprocess(x, "unit")),
    "rgb": Pixels("RGB in place of BGR", lambda x: preprocess(x[..., ::-1])),
    "uncentered": Pixels(
        "the mean is not subtracted", lambda x: np.asarray(preprocess(x)) + MEAN_BGR
    ),
    "crop": Pixels("the center crop in place of the whole image", resize="crop"),
    "nearest": Pixels("nearest in place of bilinear", interpolation="nearest"),
}
"""Mistakes with pixels; the last two change nothing where no image is resized."""

SIZES = {"flowers": 128, "breeds": 224}
"""Folder -> the side in px of the network's input; the flowers have that size."""

KINDS = {"flowers": ("unit", "rgb", "uncentered"), "breeds": tuple(MISTAKES)}


class Row(NamedTuple):
    """The accuracies of one mistake, one of each seed."""

    what: str
    right: list[float]
    wrong: list[float]
    only_test: list[float]
    """Trained rightly and tested with the mistake; empty where that makes no sense."""


def measure(
    photographs: Photographs, weights: Path, *, work: Path, seeds: int = 5, **settings: Any
) -> Iterator[Row]:
    """Yield a row for each mistake with a dataset."""
    name, size = photographs.name, SIZES.get(photographs.name, 224)

    def features(key: str, kind: Pixels) -> np.ndarray:
        kept = work / f"{name}-{len(photographs)}-{key}.npy"
        resizing = Preprocessing(
            image_size=size, resize=kind.resize, interpolation=kind.interpolation
        )
        images = np.empty(0) if kept.exists() else photographs.pixels(resizing)
        return features_of(images, weights, pixels=kind.prepare, kept=kept)

    labels = photographs.labels
    splits = [photographs.split(seed) for seed in range(seeds)]
    right = features("right", RIGHT)
    trainer = HeadTrainer(size // 32, len(photographs.class_names), **settings)

    def accuracy(classify: Callable, x: np.ndarray, rows: np.ndarray) -> float:
        return float((classify(x[rows]) == labels[rows]).mean())

    heads = [
        trainer.train(right[train], labels[train], seed=seed)
        for seed, (train, _) in enumerate(splits)
    ]
    honest = [accuracy(head, right, test) for head, (_, test) in zip(heads, splits, strict=True)]
    yield Row("none", honest, honest, [])
    for key in KINDS.get(name, tuple(MISTAKES)):
        wrong = features(key, MISTAKES[key])
        both = [
            accuracy(trainer.train(wrong[train], labels[train], seed=seed), wrong, test)
            for seed, (train, test) in enumerate(splits)
        ]
        only = [accuracy(head, wrong, test) for head, (_, test) in zip(heads, splits, strict=True)]
        yield Row(MISTAKES[key].what, honest, both, only)
    shuffled, leaked = [], []
    for seed, (train, test) in enumerate(splits):
        mixed = np.random.default_rng(seed).permutation(labels[train])
        shuffled.append(accuracy(trainer.train(right[train], mixed, seed=seed), right, test))
        everything = np.concatenate([train, test])
        head = trainer.train(right[everything], labels[everything], seed=seed)
        leaked.append(accuracy(head, right, test))
    yield Row("labels in another order than the cached features", honest, shuffled, [])
    yield Row("the test images are among the training images", honest, leaked, [])


def measure_batch_norm(workdir: Path, *, batch_size: int = 32) -> Iterator[Row]:
    """Yield the rows of a run whose network uses the statistics of each test batch."""
    run = load_run_result(workdir, strict=True)
    assert run.source is not None and run.splits is not None and run.model is not None
    assert run.info is not None
    rows = np.asarray(run.splits["test"])
    rows = np.random.default_rng(0).permutation(rows)
    labels, preprocessing = np.asarray(run.source.labels), run.info.preprocessing
    images = {
        row: resize_image(run.source.read(row).pixels, preprocessing) for row in rows.tolist()
    }
    model, names = run.model, label_layers(run.model, ("all",))

    def accuracy(order: np.ndarray, size: int) -> float:
        graphdef, state = nnx.split(model)
        forward = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))
        correct = 0
        for first in range(0, len(order) // size * size, size):
            batch = order[first : first + size]
            pixels = jnp.asarray(np.stack([images[row] for row in batch.tolist()]))
            logits = np.asarray(forward(state, preprocess(pixels, preprocessing.mode)))
            correct += int((logits.argmax(1) == labels[batch]).sum())
        return correct / (len(order) // size * size)

    model.eval()
    honest = [accuracy(rows, batch_size)]
    set_training_mode(model, names)
    # Runs of one class, so that nearly every batch has one class alone.
    by_class = rows[np.argsort(labels[rows], kind="stable")]
    for what, order, size in (
        (f"batch statistics at test, batches of {batch_size} mixed images", rows, batch_size),
        (f"the same, batches of {batch_size} images of one class", by_class, batch_size),
        ("the same, one image at a time", rows[:500], 1),
    ):
        yield Row(what, honest, honest, [accuracy(order, size)])


HEADINGS = ("mistake", "accuracy", "difference in points", "only with the test images")


def table_rows(rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of each row."""
    cells = []
    for row in rows:
        difference = [w - r for w, r in zip(row.wrong, row.right, strict=True)]
        is_none = row.wrong == row.right
        at_test = is_none and bool(row.only_test)
        cells.append(
            [
                row.what,
                "" if at_test else percent(row.wrong),
                "" if is_none else points(difference),
                percent(row.only_test) if row.only_test else "",
            ]
        )
    return cells


def write_table(page: Path, name: str, rows: Sequence[Row], *, remark: str) -> None:
    """Write a dataset's table between its markers."""
    replace_part(page, name, f"{remark}\n\n{markdown_table(HEADINGS, table_rows(rows))}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", choices=[*SIZES, []], default=[])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/mistakes"))
    parser.add_argument("--photographs", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "mistakes.md")
    args = parser.parse_args(argv)
    for name in args.name or ([] if args.runs else list(SIZES)):
        photographs = Photographs(args.data / name, args.photographs)
        rows = []
        for row in measure(
            photographs, args.weights, work=args.work, seeds=args.seeds, epochs=20, augment="none"
        ):
            rows.append(row)
            print(name, *table_rows([row])[0], sep=" | ", flush=True)
        remark = (
            f"{len(photographs):,} photographs of `{name}`, "
            f"{len(photographs.class_names)} classes, {SIZES[name]} px, "
            f"{args.seeds} seeds; {describe_machine()}"
        )
        write_table(args.page, name, rows, remark=remark)
    if args.runs:
        rows = [row for run in args.runs for row in measure_batch_norm(run)]
        first = Row("none", rows[0].right, rows[0].right, [])
        remark = f"Run: `{args.runs[0].name}`; {describe_machine()}"
        write_table(args.page, "batch-norm", [first, *rows], remark=remark)


if __name__ == "__main__":
    main()
