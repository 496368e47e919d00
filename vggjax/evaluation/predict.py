"""Classify images: files, folders and globs in, the most probable classes out.

A run's model is used with the preprocessing that was saved with it; published weights with Keras'
('caffe', short side 256, bicubic, the center 224 px), which their accuracies need. An image that
cannot be read is left out and named with its reason; the others are classified all the same.
"""

import csv as csv_module
import glob
import io
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from vggjax.atomic import write_text
from vggjax.data.images.decode import load_image
from vggjax.data.images.formats import ENDINGS
from vggjax.data.images.preprocess import resize_image
from vggjax.errors import ConfigError, DataError, nearest_name, printable
from vggjax.evaluation.imagenet import open_published
from vggjax.evaluation.metrics import top_classes
from vggjax.models.arch import ARCHS
from vggjax.models.network import Network
from vggjax.training.run_dir.run_result import ModelInfo, load_model
from vggjax.training.step import make_predict_step


class Prediction(NamedTuple):
    """One image and its most probable classes."""

    path: Path
    top: list[tuple[str, float]]
    """(class name, probability), best first."""


def predict_command(
    patterns: Sequence[str],
    *,
    workdir: str | None = None,
    weights: str | None = None,
    model: str | None = None,
    top: int = 5,
    csv: str | None = None,
    expect_sha256: str | None = None,
) -> int:
    """Classify images, print a table and write it to a CSV file.

    Args:
        patterns: files, folders and globs.
        workdir: a run's folder; None, without weights, is the newest under runs/.
        weights: a file, or `imagenet`, with the published 1000-class top.
        model: the network of the weights.
        top: number of classes per image.
        csv: the file to write.
        expect_sha256: refuse weights with another checksum.

    Returns:
        The exit code: 0, or 3 if images were left out, each named with its reason on stderr.

    Raises:
        DataError: a file that does not exist, or no image that can be classified.
        ConfigError, WeightsError: settings or weights that cannot be used.
    """
    if top < 1:
        raise ConfigError(f"`top` must be above 0; got {top}.")
    if csv is not None and (os.path.isdir(csv) or not Path(csv).absolute().parent.is_dir()):
        raise ConfigError(f"`csv` must be a file in an existing folder; got {printable(csv)!r}.")
    paths = find_images(patterns)
    network, info = _open_model(workdir, weights, model, expect_sha256)
    predictions, left_out = predict_images(network, info, paths, top=top)
    messages = [f"{printable(path)}: {printable(reason)}" for path, reason in left_out]
    if predictions or len(left_out) > 1:
        for message in messages:
            print(f"vggjax: left out: {message}", file=sys.stderr)
    if not predictions:
        several = len(left_out) > 1
        subject = f"None of the {len(left_out)} images can" if several else "The image cannot"
        raise DataError(f"{subject} be used; {messages[0]}.")
    print_table(predictions)
    if csv is not None:
        write_csv(csv, predictions)
    return 3 if left_out else 0


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Resolve files, folders (all images below) and globs to files, each once, in order.

    A file that is named, or that a glob matches, is accepted whatever its ending; in a folder the
    ending decides, and hidden names are skipped.

    Raises:
        DataError: a name that does not exist, with the nearest one, or that has no images.
    """
    if not patterns:
        raise DataError("No images were named. Give files, folders or globs.")
    paths: dict[Path, None] = {}
    for pattern in map(os.fspath, patterns):
        if os.path.exists(pattern):
            matches = [pattern]
        elif glob.has_magic(pattern):
            matches = sorted(glob.glob(pattern, recursive=True))
            if not matches:
                raise DataError(f"No file matches {printable(pattern)!r}.")
        else:
            hint = _suggestion(pattern)
            raise DataError(f"No such file or folder: {printable(pattern)!r}.{hint}")
        for match in matches:
            if not os.path.isdir(match):
                paths[Path(match)] = None
            elif below := _images_below(match):
                paths.update(dict.fromkeys(below))
            elif match == pattern:
                raise DataError(
                    f"The folder {printable(pattern)!r} has no images; their names end in "
                    f"{', '.join(ENDINGS)}."
                )
    if not paths:
        raise DataError(f"No images found in {', '.join(map(printable, patterns))}.")
    return list(paths)


def predict_images(
    model: Network, info: ModelInfo, paths: Sequence[Path], *, top: int = 5, batch_size: int = 32
) -> tuple[list[Prediction], list[tuple[Path, str]]]:
    """Return the predictions in the order of `paths`, and (path, reason) of images left out."""
    predict_step = make_predict_step(model, info.preprocessing.mode)
    batch_size, size = min(batch_size, len(paths)), info.preprocessing.image_size
    predictions: list[Prediction] = []
    left_out: list[tuple[Path, str]] = []

    def read(path: Path, row: np.ndarray) -> str | None:
        """Fill a row of the batch, or return why the image cannot be read."""
        try:
            resize_image(load_image(path), info.preprocessing, out=row)
        except DataError as error:
            return str(error)
        return None

    console = Console(stderr=True)
    quiet = not console.is_terminal or len(paths) <= batch_size
    starts = range(0, len(paths), max(batch_size, 1))
    with ThreadPoolExecutor() as threads:
        for start in track(starts, "Predicting", console=console, transient=True, disable=quiet):
            batch_paths = paths[start : start + batch_size]
            # Always the same number of rows: another one would compile the network again.
            images = np.zeros((batch_size, size, size, 3), np.uint8)
            reasons = list(threads.map(read, batch_paths, images))
            left_out += [(path, why) for path, why in zip(batch_paths, reasons, strict=True) if why]
            if all(reasons):
                continue
            probs = np.asarray(predict_step(images))
            for path, reason, row in zip(batch_paths, reasons, probs, strict=False):
                if not reason:
                    best = top_classes(row[None], top)[0]
                    classes = [(info.class_names[i], float(row[i])) for i in best]
                    predictions.append(Prediction(path, classes))
    return predictions, left_out


def print_table(predictions: Sequence[Prediction]) -> None:
    """Print a row per image: the predicted class, its probability, and the next classes."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # wrapped names are hard to search in a file
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("image", overflow="fold")
    table.add_column("prediction", style="bold", overflow="fold")
    table.add_column("probability", justify="right")
    if any(len(prediction.top) > 1 for prediction in predictions):
        table.add_column("next", style="dim", overflow="fold")
    for path, (best, *others) in predictions:
        following = ", ".join(f"{printable(name)} {share:.1%}" for name, share in others)
        cells = [printable(path), printable(best[0]), f"{best[1]:.1%}"]
        table.add_row(*map(escape, [*cells, following] if others else cells))
    console.print(table)


def write_csv(path: str | Path, predictions: Sequence[Prediction]) -> None:
    """Write path, class1, probability1, class2 ..., a line per image."""
    file = io.StringIO()
    writer = csv_module.writer(file, lineterminator="\n")
    ranks = range(1, 1 + max(len(prediction.top) for prediction in predictions))
    writer.writerow(["path", *(f"{name}{i}" for i in ranks for name in ("class", "probability"))])
    for image, top in predictions:
        cells = [cell for name, share in top for cell in (printable(name), f"{share:.6f}")]
        writer.writerow([printable(image), *cells])
    write_text(Path(path), file.getvalue())


def _open_model(
    workdir: str | None, weights: str | None, model: str | None, expect_sha256: str | None
) -> tuple[Network, ModelInfo]:
    if weights is None:
        for name, value in (("expect_sha256", expect_sha256), ("model", model)):
            if value is not None:
                raise ConfigError(f"`{name}` needs `weights`, a file or imagenet; got {value}.")
        return load_model(_newest_run() if workdir is None else workdir)
    if workdir is not None:
        raise ConfigError("`workdir` and `weights` both name a model; give one of them.")
    if model is None:
        raise ConfigError(f"`weights` needs `model`, one of {', '.join(ARCHS)}.")
    return open_published(model, weights, expect_sha256=expect_sha256)


def _newest_run() -> Path:
    runs = [path.parent for path in Path("runs").glob("*/model.json")]
    runs = [run for run in runs if (run / "model.safetensors").is_file()]
    if not runs:
        raise ConfigError(
            "There is no finished run in runs/. Give `workdir`, or `weights` and `model`, or train "
            "a model: python train.py."
        )
    newest = max(runs, key=lambda run: (run / "model.json").stat().st_mtime)
    print(f"vggjax: using the newest run, {printable(newest)}", file=sys.stderr)
    return newest


def _images_below(folder: str) -> list[Path]:
    paths: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = (name for name in sorted(names) if name.lower().endswith(ENDINGS))
        paths += [Path(root, name) for name in images if not name.startswith(".")]
    return [path for path in paths if path.is_file()]


def _suggestion(pattern: str) -> str:
    path = Path(pattern)
    try:
        near = nearest_name(path.name, os.listdir(path.parent))
    except OSError:
        return ""
    return f" Did you mean {printable(path.parent / near)!r}?" if near else ""
