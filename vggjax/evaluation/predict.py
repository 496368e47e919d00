"""Names what is on images: files, folders and globs in, the most probable classes out.

A run's own model is used with the preprocessing that was saved with it; published weights with
Keras' ('caffe', short side 256, bicubic, the center 224 px), which their accuracies need. An image
that cannot be read is left out and named with its reason; the others are predicted all the same.
"""

import csv
import difflib
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
from vggjax.errors import ConfigError, DataError, printable
from vggjax.evaluation.imagenet import decode_predictions as decode_predictions
from vggjax.evaluation.metrics import top_classes
from vggjax.evaluation.published_model import open_published
from vggjax.models.arch import ARCHS
from vggjax.models.network import Network
from vggjax.training.run_dir.saved_model import ModelInfo, load_model
from vggjax.training.step import make_predict_step


class Prediction(NamedTuple):
    """One image and its most probable classes, best first."""

    path: Path
    top: list[tuple[str, float]]


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
    """Predicts, prints a table and writes the CSV; gives the exit code.

    Args:
        patterns: files, folders and globs.
        workdir: a run's folder; None, without weights, is the newest under runs/.
        weights: a file, or `imagenet`, with the published 1000-class top.
        model: the network that the weights are for.
        top: how many classes to give.
        csv: a file to write.
        expect_sha256: refuse weights with another checksum.

    Returns:
        0, or 3 where images were left out, each named with its reason on stderr.

    Raises:
        DataError: a file that does not exist, or nothing that can be predicted.
        ConfigError, WeightsError: settings or weights that cannot be used.
    """
    if top < 1:
        raise ConfigError(f"--top must be 1 or more; got {top}.")
    if csv is not None and (os.path.isdir(csv) or not Path(csv).absolute().parent.is_dir()):
        raise ConfigError(
            f"--csv must name a file in a folder that exists; got {printable(csv)!r}."
        )
    paths = find_images(patterns)
    network, info = _open_model(workdir, weights, model, expect_sha256)
    rows, skipped = predict_images(network, info, paths, top=top)
    for path, reason in skipped if rows or len(skipped) > 1 else ():
        print(f"vggjax: left out: {printable(path)}: {printable(reason)}", file=sys.stderr)
    if not rows:
        first, reason = skipped[0]
        count = "The image" if len(skipped) == 1 else f"None of the {len(skipped)} images"
        verb = "cannot" if len(skipped) == 1 else "can"
        raise DataError(f"{count} {verb} be used; {printable(first)}: {printable(reason)}.")
    print_table(rows)
    if csv is not None:
        write_csv(csv, rows)
    return 3 if skipped else 0


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Resolves files, folders (all images below) and globs to files, each once, in order.

    A glob gives what the shell would give, so that it may be quoted. A file that is named is taken
    whatever its ending; below a folder the ending decides, and hidden names are passed over.

    Raises:
        DataError: a name that does not exist, with the nearest one, or one without images.
    """
    if not patterns:
        raise DataError("No images were named. Give files, folders or globs.")
    found: dict[Path, None] = {}
    for pattern in map(os.fspath, patterns):
        if os.path.exists(pattern):
            matches = [pattern]
        elif glob.has_magic(pattern):
            matches = sorted(glob.glob(pattern, recursive=True))
            if not matches:
                raise DataError(f"No file matches {printable(pattern)!r}.")
        else:
            raise DataError(f"No such file or folder: {printable(pattern)!r}.{_nearest(pattern)}")
        for match in matches:
            if not os.path.isdir(match):
                found[Path(match)] = None
            elif below := _images_below(match):
                found.update(dict.fromkeys(below))
            elif match == pattern:
                raise DataError(
                    f"The folder {printable(pattern)!r} has no images; their names end in "
                    f"{', '.join(ENDINGS)}."
                )
    if not found:
        raise DataError(f"No images lie under {', '.join(map(printable, patterns))}.")
    return list(found)


def predict_images(
    model: Network, info: ModelInfo, paths: Sequence[Path], *, top: int = 5, batch_size: int = 32
) -> tuple[list[Prediction], list[tuple[Path, str]]]:
    """Gives the predictions in the order of `paths`, and (path, reason) of those left out."""
    predict_step = make_predict_step(model, info.preprocessing.mode)
    batch_size = min(batch_size, len(paths))
    rows: list[Prediction] = []
    skipped: list[tuple[Path, str]] = []

    def read(path: Path) -> np.ndarray | str:
        try:
            return resize_image(load_image(path), info.preprocessing)
        except DataError as error:
            return str(error)

    console = Console(stderr=True)
    quiet = not console.is_terminal or len(paths) <= batch_size
    starts = range(0, len(paths), max(batch_size, 1))
    with ThreadPoolExecutor() as threads:
        for start in track(starts, "Predicting", console=console, transient=True, disable=quiet):
            some = paths[start : start + batch_size]
            results = list(zip(some, threads.map(read, some), strict=True))
            skipped += [(path, image) for path, image in results if isinstance(image, str)]
            readable = [(path, image) for path, image in results if not isinstance(image, str)]
            if not readable:
                continue
            images = np.stack([image for _, image in readable])
            # Always the same number of rows: another one would compile the network again.
            padding = ((0, batch_size - len(images)), (0, 0), (0, 0), (0, 0))
            probs = np.asarray(predict_step(np.pad(images, padding)))
            for (path, _), row in zip(readable, probs, strict=False):
                best = top_classes(row[None], top)[0]
                rows.append(Prediction(path, [(info.class_names[i], float(row[i])) for i in best]))
    return rows, skipped


def print_table(rows: Sequence[Prediction]) -> None:
    """Prints one row an image: the guess, its probability, and the runners-up."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a file has room; folded names are hard to search
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("image", overflow="fold")
    table.add_column("guess", style="bold", overflow="fold")
    table.add_column("probability", justify="right")
    if any(len(row.top) > 1 for row in rows):
        table.add_column("then", style="dim", overflow="fold")
    for path, (best, *others) in rows:
        then = ", ".join(f"{printable(name)} {probability:.1%}" for name, probability in others)
        cells = [printable(path), printable(best[0]), f"{best[1]:.1%}"] + ([then] if others else [])
        table.add_row(*map(escape, cells))
    console.print(table)


def write_csv(path: str | Path, rows: Sequence[Prediction]) -> None:
    """Writes path, class1, probability1, class2 ... a line an image, whole or not at all."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    ranks = range(1, 1 + max(len(row.top) for row in rows))
    writer.writerow(["path", *(f"{name}{i}" for i in ranks for name in ("class", "probability"))])
    for image, top in rows:
        cells = [cell for name, share in top for cell in (printable(name), f"{share:.6f}")]
        writer.writerow([printable(image), *cells])
    write_text(Path(path), file.getvalue())


def _open_model(
    workdir: str | None, weights: str | None, model: str | None, expect_sha256: str | None
) -> tuple[Network, ModelInfo]:
    if weights is None:
        if expect_sha256 is not None:
            raise ConfigError("--expect-sha256 goes with --weights FILE.")
        if model is not None:
            raise ConfigError(
                f"--model {model} goes with --weights (a file, or imagenet); a run's folder knows "
                "its model."
            )
        return load_model(_newest_run() if workdir is None else workdir)
    if workdir is not None:
        raise ConfigError("--workdir and --weights both name a model; give one of them.")
    if model is None:
        raise ConfigError(f"--weights needs --model, one of {', '.join(ARCHS)}.")
    return open_published(model, weights, expect_sha256=expect_sha256)


def _newest_run() -> Path:
    runs = [path.parent for path in Path("runs").glob("*/model.json")]
    runs = [run for run in runs if (run / "model.safetensors").is_file()]
    if not runs:
        raise ConfigError(
            "No finished run lies under runs/. Give --workdir RUN, or --weights FILE --model "
            "vgg16, or train one: python train.py."
        )
    newest = max(runs, key=lambda run: (run / "model.json").stat().st_mtime)
    print(f"vggjax: using the newest run, {printable(newest)}", file=sys.stderr)
    return newest


def _images_below(folder: str) -> list[Path]:
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            path
            for name in sorted(names)
            if not name.startswith(".")
            and name.lower().endswith(ENDINGS)
            and os.path.isfile(path := Path(root, name))
        ]
    return found


def _nearest(pattern: str) -> str:
    path = Path(pattern)
    try:
        siblings = os.listdir(path.parent)
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.6)
    return f" Did you mean {printable(path.parent / near[0])!r}?" if near else ""
