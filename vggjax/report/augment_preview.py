"""Preview augmentation: photographs beside what training may make of them.

One row per photograph, spread over the classes: the original, then `DRAWS` random draws by the
functions of the training step itself. With mixup or CutMix, each draw shows its mixed label.
"""

import io
import math
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from vggjax.atomic import atomic_write
from vggjax.data.augment.augment import augment
from vggjax.data.augment.mix import mix
from vggjax.data.augment.settings import Augmentation, describe, is_on
from vggjax.data.images.preprocess import Preprocessing, resize_image
from vggjax.data.sources.open import open_source
from vggjax.data.sources.source import Source
from vggjax.errors import ConfigError, DataError, printable
from vggjax.models.arch import MIN_SIZE_PX
from vggjax.report.plot_style import LIGHT, drawable
from vggjax.report.thumbnails import grid_font, thumbnail
from vggjax.training.config import Config
from vggjax.training.run_dir.saved_model import ModelInfo

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage
    from PIL.ImageFont import FreeTypeFont

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
DRAWS = 8
MAX_ROWS = 50
MAX_SIZE_PX = 1024
NUM_EXAMPLES = 3
"""Rows in a report."""

CELL_PX = 168
"""Side of a shown image; larger ones are reduced, smaller ones repeat their pixels."""

MARGIN_PX, GAP_PX, ROW_GAP_PX = 28, 6, 14
_NAME_PX, _TITLE_PX, _CAPTION_PX, _LINE_PX = 170, 92, 20, 24


def write_preview(
    dataset: str,
    out: str | Path,
    *,
    augmentation: Augmentation,
    image_size: int = 224,
    rows: int = 6,
    seed: int = 0,
    data_dir: str | None = None,
) -> Path:
    """Write the preview of a dataset as a PNG, JPEG or WebP file, by its ending.

    Raises:
        ConfigError: the file cannot be written, or a number is out of range.
        DataError: there is no such dataset, or none of its images can be read.
    """
    path = _check_file(out)
    for name, value, low, high, unit in (
        ("rows", rows, 1, MAX_ROWS, ""),
        ("image_size", image_size, MIN_SIZE_PX, MAX_SIZE_PX, " px"),
        ("seed", seed, 0, 2**32 - 1, ""),
    ):
        if not low <= value <= high:
            raise ConfigError(f"`{name}` must be from {low} to {high}{unit}; got {value}.")
    preprocessing = Preprocessing(image_size=image_size)
    source = open_source(dataset, data_dir=data_dir)
    _check_outside(path, source)
    indices, images = choose_images(source, preprocessing, rows=rows, seed=seed)
    draws = augmented_draws(images, source.labels[indices], augmentation, seed=seed)
    title = f"Augmentation: {describe(augmentation)}"
    subtitle = f"{printable(source.name)}, {image_size} px, seed {seed}"
    preview = _lay_out(source, indices, images, draws, title=title, subtitle=subtitle)
    file = io.BytesIO()
    preview.save(file, FORMATS[path.suffix.lower()], quality=92)
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(file.getvalue())
    except OSError as error:
        raise ConfigError(f"Cannot write {printable(path)}: {error.strerror or error}.") from None
    return path


def augmented_draws(
    images: np.ndarray, labels: np.ndarray, augmentation: Augmentation, *, seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """Augment a batch `DRAWS` times.

    Returns:
        For each draw `images`, uint8 (N, S, S, 3), and with mixup or CutMix `other`, the label of
        the image that was mixed in, and `share`, the weight of the image's own label, both (N,).
    """
    mask = jax.numpy.ones(len(images))

    @jax.jit
    def draw(key: jax.Array, images: jax.Array, labels: jax.Array) -> dict[str, Any]:
        augmented = augment(key, images, augmentation)
        mixup, cutmix = augmentation.mixup, augmentation.cutmix
        if not (mixup or cutmix):
            return {"images": augmented}
        return mix(key, augmented, labels, mask, mixup=mixup, cutmix=cutmix)._asdict()

    key = jax.random.key(seed)
    keys = (jax.random.fold_in(key, number) for number in range(DRAWS))
    return [jax.tree.map(np.asarray, draw(k, images, labels)) for k in keys]


def augmented_examples(
    info: ModelInfo, source: Source, config: Config, train: np.ndarray
) -> list[tuple[str, list[np.ndarray]]]:
    """Augment a few images of the training split, for the report.

    Returns:
        For each image its class name, and thumbnails of the original and `DRAWS` draws; empty
        without augmentation, or where no image can be read.
    """
    if not is_on(config.augmentation):
        return []
    try:
        indices, images = choose_images(
            source, info.preprocessing, rows=NUM_EXAMPLES, seed=config.seed, among=train
        )
    except DataError:
        return []
    labels = source.labels[indices].astype(np.int32)
    draws = augmented_draws(images, labels, config.augmentation, seed=config.seed)
    batches = [images, *(draw["images"] for draw in draws)]
    return [
        (
            printable(info.class_names[labels[row]]),
            [thumbnail(batch[row], side_px=128) for batch in batches],
        )
        for row in range(len(indices))
    ]


def choose_images(
    source: Source,
    preprocessing: Preprocessing,
    *,
    rows: int,
    seed: int = 0,
    among: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose readable images at random, from one class after the other.

    Args:
        source: the dataset.
        preprocessing: how the images are resized.
        rows: how many images, at most.
        seed: decides the choice.
        among: choose among these indices only.

    Returns:
        Indices (N,) in the order of the classes, and the images, uint8 (N, S, S, 3).

    Raises:
        DataError: none of them can be read.
    """
    among = np.arange(len(source)) if among is None else np.asarray(among)
    order = among[np.random.default_rng(seed).permutation(len(among))]
    labels = source.labels[order]
    rank = np.empty(len(order), np.int64)  # of an image within its class
    for label in range(len(source.class_names)):
        members = labels == label
        rank[members] = np.arange(members.sum())
    chosen: list[int] = []
    images: list[np.ndarray] = []
    reasons: list[str] = []
    for i in order[np.argsort(rank, kind="stable")]:
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


def _check_file(out: str | Path) -> Path:
    path = Path(out).expanduser()
    if path.is_dir():
        raise ConfigError(f"`out` is the folder {printable(path)}; give a file in it.")
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"`out` must end in {', '.join(FORMATS)}; got {printable(path.name)!r}.")
    if not path.parent.is_dir():
        raise ConfigError(f"`out` must be in an existing folder; got {printable(path)}.")
    return path


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


def _lay_out(
    source: Source,
    indices: np.ndarray,
    images: np.ndarray,
    draws: list[dict[str, np.ndarray]],
    *,
    title: str,
    subtitle: str,
) -> "PilImage":
    from PIL import Image, ImageDraw

    large, small = partial(grid_font, 17), grid_font(13)
    is_mixed = "share" in draws[0]
    step = CELL_PX + ROW_GAP_PX + (_CAPTION_PX if is_mixed else 0)
    left = MARGIN_PX + _NAME_PX
    width = left + (1 + DRAWS) * (CELL_PX + GAP_PX) + 2 * GAP_PX + MARGIN_PX
    lines = _wrap(title, large(bold=True), width - 2 * MARGIN_PX)
    top = _TITLE_PX + _LINE_PX * (len(lines) - 1)
    size = width, top + len(images) * step + MARGIN_PX - ROW_GAP_PX
    preview = Image.new("RGB", size, LIGHT["paper"])
    draw = ImageDraw.Draw(preview)
    for number, line in enumerate(lines):
        y = 20 + _LINE_PX * number
        draw.text((MARGIN_PX, y), line, LIGHT["ink"], large(bold=True))
    columns = [left + i * (CELL_PX + GAP_PX) + (2 * GAP_PX if i else 0) for i in range(1 + DRAWS)]
    draw.text((MARGIN_PX, top - 46), subtitle, LIGHT["muted"], small)
    draw.text((left, top - 20), "original", LIGHT["muted"], small)
    draw.text((columns[1], top - 20), "augmented", LIGHT["muted"], small)
    for row, index in enumerate(indices):
        y, label = top + row * step, int(source.labels[index])
        name = drawable(source.class_names[label], label, width=17)
        draw.text((MARGIN_PX, y + CELL_PX // 2 - 20), name, LIGHT["ink"], large(bold=True))
        file = drawable(Path(source.ids[index]).name, width=20)
        draw.text((MARGIN_PX, y + CELL_PX // 2 + 4), file, LIGHT["muted"], small)
        preview.paste(_cell(images[row]), (columns[0], y))
        for x, drawn in zip(columns[1:], draws, strict=True):
            preview.paste(_cell(drawn["images"][row]), (x, y))
            if is_mixed:
                text = _mixed_label(source, label, int(drawn["other"][row]), drawn["share"][row])
                draw.text((x, y + CELL_PX + 2), text, LIGHT["muted"], small)
    return preview


def _mixed_label(source: Source, label: int, other: int, share: float) -> str:
    names = [drawable(source.class_names[i], i, width=9) for i in (label, other)]
    percent = round(100 * float(share))
    if percent == 100:
        return f"100% {names[0]}"
    return f"{percent}% {names[0]}, {100 - percent}% {names[1]}"


def _cell(pixels: np.ndarray) -> "PilImage":
    from PIL import Image

    image, side = Image.fromarray(pixels), pixels.shape[0]
    if side < CELL_PX:
        factor = math.ceil(CELL_PX / side)
        image = image.resize((side * factor,) * 2, Image.Resampling.NEAREST)
    return image.resize((CELL_PX,) * 2, Image.Resampling.LANCZOS)


def _wrap(text: str, font: "FreeTypeFont", width: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
