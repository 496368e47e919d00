"""Preview augmentation: photographs beside what training may make of them.

One row per photograph, spread over the classes: the original, then `DRAWS` random draws by the
functions of the training step itself. With mixup or CutMix, each draw shows its mixed label.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vggjax.atomic import check_output_file, write_output
from vggjax.data.augment.augment import augment, mix
from vggjax.data.augment.settings import Augmentation, describe, is_on
from vggjax.data.images.preprocess import Preprocessing, resize_image
from vggjax.data.sources.open import open_source
from vggjax.data.sources.options import DEFAULT_OPTIONS, DatasetOptions
from vggjax.data.sources.rendering import render_source
from vggjax.data.sources.source import Source
from vggjax.errors import ConfigError, DataError, printable
from vggjax.models.arch import MIN_SIZE_PX
from vggjax.report.plot_style import drawable, image_bytes
from vggjax.report.thumbnails import Cell, image_grid, round_robin, thumbnail
from vggjax.training.run_dir.run_result import RunResult

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
DRAWS = 8
MAX_ROWS = 50
MAX_SIZE_PX = 1024
NUM_EXAMPLES = 3
"""Rows in a report."""


def write_preview(
    dataset: str,
    out: str | Path,
    *,
    augmentation: Augmentation,
    image_size: int = 224,
    rows: int = 6,
    seed: int = 0,
    data_dir: str | None = None,
    options: DatasetOptions = DEFAULT_OPTIONS,
) -> Path:
    """Write the preview of a dataset as a PNG, JPEG or WebP file, by its ending.

    Raises:
        ConfigError: the file cannot be written, a number is out of range, or an option does not
            apply to the dataset.
        DataError: there is no such dataset, or none of its images can be read.
    """
    path = check_output_file(out, field="out", endings=FORMATS)
    for name, value, low, high, unit in (
        ("rows", rows, 1, MAX_ROWS, ""),
        ("image_size", image_size, MIN_SIZE_PX, MAX_SIZE_PX, " px"),
        ("seed", seed, 0, 2**32 - 1, ""),
    ):
        if not low <= value <= high:
            raise ConfigError(f"`{name}` must be from {low} to {high}{unit}; got {value}.")
    preprocessing = Preprocessing(image_size=image_size)
    source, _ = render_source(open_source(dataset, data_dir=data_dir, options=options), options)
    _check_outside(path, source)
    indices, images = choose_images(source, preprocessing, rows=rows, seed=seed)
    draws = augmented_draws(images, indices, augmentation, seed=seed)
    grid = []
    for row, index in enumerate(indices.tolist()):
        name, file = _name(source, index), Path(source.ids[index]).name
        cells = [Cell(images[row], ((name, "bold"), (drawable(file), "muted")))]
        for draw in draws:
            mixed = [draw[key][row] for key in ("other", "share") if key in draw]
            caption = _caption(source, index, *mixed) if mixed else "augmented"
            cells.append(Cell(draw["images"][row], ((caption, "muted"),)))
        grid.append(cells)
    title = f"Augmentation: {describe(augmentation)}"
    preview = image_grid(grid, title=f"{title} ({source.name}, {image_size} px, seed {seed})")
    write_output(path, image_bytes(preview, FORMATS[path.suffix.lower()]))
    return path


def augmented_draws(
    images: np.ndarray, indices: np.ndarray, augmentation: Augmentation, *, seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """Augment a batch `DRAWS` times.

    Returns:
        For each draw `images`, uint8 (N, S, S, 3), and with mixup or CutMix `other`, the index of
        the image that was mixed in, and `share`, the weight of the image's own label, both (N,).
    """
    key = jax.random.key(seed)
    keys = (jax.random.fold_in(key, number) for number in range(DRAWS))
    return [jax.tree.map(np.asarray, _draw(k, images, indices, augmentation)) for k in keys]


@partial(jax.jit, static_argnums=3)
def _draw(
    key: jax.Array, images: jax.Array, indices: jax.Array, augmentation: Augmentation
) -> dict[str, jax.Array]:
    augmented = augment(key, images, augmentation)
    mixup, cutmix = augmentation.mixup, augmentation.cutmix
    if not (mixup or cutmix):
        return {"images": augmented}
    mask = jax.numpy.ones(len(images))
    return mix(key, augmented, indices, mask, mixup=mixup, cutmix=cutmix)._asdict()


def augmented_examples(run: RunResult) -> list[tuple[str, list[np.ndarray]]]:
    """Augment a few training images of a run, for the report.

    Returns:
        For each image its class name, and thumbnails of the original and `DRAWS` draws; empty
        without augmentation, without the model or the dataset, or where no image can be read.
    """
    augmentation, seed, source = run.config.augmentation, run.config.seed, run.source
    if not is_on(augmentation) or run.info is None or source is None or run.splits is None:
        return []
    try:
        indices, images = choose_images(
            source, run.info.preprocessing, rows=NUM_EXAMPLES, seed=seed, among=run.splits["train"]
        )
    except DataError:
        return []
    draws = augmented_draws(images, indices, augmentation, seed=seed)
    columns = [images, *(draw["images"] for draw in draws)]
    return [
        (printable(source.label_text(index)), [thumbnail(image, side_px=128) for image in row])
        for index, *row in zip(indices.tolist(), *columns, strict=True)
    ]


def choose_images(
    source: Source,
    preprocessing: Preprocessing,
    *,
    rows: int,
    seed: int = 0,
    among: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose up to `rows` readable images at random, from one class after the other.

    Returns:
        Indices (N,), out of `among`, in the order of the classes; the images, uint8 (N, S, S, 3).

    Raises:
        DataError: none of them can be read.
    """
    among = np.arange(len(source)) if among is None else np.asarray(among)
    order = among[np.random.default_rng(seed).permutation(len(among))]
    chosen: list[int] = []
    images: list[np.ndarray] = []
    reasons: list[str] = []
    for i in order[round_robin(source.labels[order].tolist())]:
        if len(chosen) == rows or len(reasons) > 10 * rows:
            break
        try:
            images.append(resize_image(source.read(int(i)).pixels, preprocessing))
            chosen.append(int(i))
        except DataError as error:
            reasons.append(f"{printable(source.ids[int(i)])}: {error}")
    if not chosen:
        raise DataError(f"No image of {printable(source.name)} can be read ({reasons[0]}).")
    by_class = np.argsort(source.labels[chosen], kind="stable")
    return np.array(chosen)[by_class], np.stack(images)[by_class]


def _check_outside(path: Path, source: Source) -> None:
    """Refuse a path inside the dataset, where the next scan would find the preview."""
    real = Path(os.path.realpath(path))
    root = source.root and Path(os.path.realpath(source.root))
    if root and real.is_relative_to(root):
        raise ConfigError(f"{printable(path)} is inside the dataset; choose a path outside of it.")
    if path.exists() and any(
        member is not None and os.path.realpath(member) == str(real)
        for member in map(source.path, range(len(source)))
    ):
        raise ConfigError(f"{printable(path)} is an image of the dataset; choose another file.")


def _name(source: Source, index: int, **options: Any) -> str:
    return drawable(source.label_text(index), int(source.labels[index]), **options)


def _caption(source: Source, index: int, other: int, share: float) -> str:
    """Return a mixed label, such as `70% rose, 30% tulip`, of the images at two indices."""
    names = [_name(source, int(i), width=9) for i in (index, other)]
    percent = round(100 * float(share))
    if percent == 100:
        return f"100% {names[0]}"
    return f"{percent}% {names[0]}, {100 - percent}% {names[1]}"
