"""The augment-preview sheet: photographs beside what the training would make of them.

A row for each photograph, from as many classes as there are rows: the original, then eight draws,
made by the very functions that the training step calls. A mixed draw says what its label is. The
file is written whole or not at all.
"""

import io
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vggjax.atomic import atomic_write
from vggjax.data.augment.augment import augment
from vggjax.data.augment.mix import mix
from vggjax.data.augment.settings import Augmentation, describe
from vggjax.data.images.preprocess import Preprocessing, resize_image
from vggjax.data.sources.open import open_source
from vggjax.data.sources.source import Source
from vggjax.errors import ConfigError, DataError, printable
from vggjax.models.arch import MIN_SIZE_PX
from vggjax.report.plot_style import FONT, drawable

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
DRAWS = 8
MAX_ROWS = 50
MAX_SIZE_PX = 1024

_CELL_PX = 168
"""Side of a shown image; larger ones are made smaller, small ones repeat their pixels."""
_MARGIN, _GAP, _ROW_GAP, _TITLE_PX, _CAPTION_PX = 28, 6, 14, 92, 20
_PAPER, _INK, _MUTED = "#ffffff", "#1d2530", "#66717f"


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
    """Draws the sheet of a dataset's photographs into a PNG, JPEG or WebP file, by its ending.

    Raises:
        ConfigError: a file that cannot be written, or a number that makes no sheet.
        DataError: no such dataset, or none of its images can be read.
    """
    path = _check_file(out)
    if not 1 <= rows <= MAX_ROWS:
        raise ConfigError(f"--rows must be from 1 to {MAX_ROWS}; got {rows}.")
    if not MIN_SIZE_PX <= image_size <= MAX_SIZE_PX:
        raise ConfigError(
            f"--image-size must be from {MIN_SIZE_PX} to {MAX_SIZE_PX} px; got {image_size}."
        )
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed must be from 0 to below 2**32; got {seed}.")
    preprocessing = Preprocessing(image_size=image_size)
    source = open_source(dataset, data_dir=data_dir)
    _check_apart(path, source)
    chosen, images = choose_images(source, preprocessing, rows=rows, seed=seed)
    drawn = draw_views(images, source.labels[chosen], augmentation, seed=seed)
    title = f"Augmentation: {describe(augmentation)}"
    below = f"{printable(source.name)}, {image_size} px, seed {seed}"
    sheet = _lay_out(source, chosen, images, drawn, title=title, subtitle=below)
    _write(path, sheet)
    return path


def draw_views(
    images: np.ndarray, labels: np.ndarray, augmentation: Augmentation, *, seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """Draws a batch eight times: `images` uint8 (N, S, S, 3), with mix's `other` and `share`."""
    a, mask = augmentation, np.ones(len(images), np.float32)

    @jax.jit
    def draw(key: jax.Array, images: jax.Array, labels: jax.Array) -> dict[str, Any]:
        changed = augment(key, images, a)
        if not (a.mixup or a.cutmix):
            return {"images": changed}
        return mix(key, changed, labels, mask, mixup=a.mixup, cutmix=a.cutmix)._asdict()

    key = jax.random.key(seed)
    keys = (jax.random.fold_in(key, number) for number in range(DRAWS))
    return [jax.tree.map(np.asarray, draw(k, images, labels)) for k in keys]


def _check_file(out: str | Path) -> Path:
    path = Path(out).expanduser()
    if path.is_dir():
        raise ConfigError(f"{printable(path)} is a folder; give a file in it, as preview.png.")
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"The sheet's file must end in {', '.join(FORMATS)}; got {printable(path.name)!r}."
        )
    if not path.parent.is_dir():
        raise ConfigError(
            f"There is no folder {printable(path.parent)} for {printable(path.name)}."
        )
    return path


def _check_apart(path: Path, source: Source) -> None:
    """Refuses to write where the next scan would take the sheet for an image, or over one."""
    place = Path(os.path.realpath(path))
    root = source.root and Path(os.path.realpath(source.root))
    if root and place.is_relative_to(root):
        raise ConfigError(f"{printable(path)} lies in the dataset; give a place outside of it.")
    if path.exists() and any(
        own is not None and os.path.realpath(own) == str(place)
        for own in map(source.path, range(len(source)))
    ):
        raise ConfigError(f"{printable(path)} is an image of the dataset; give another file.")


def choose_images(
    source: Source,
    preprocessing: Preprocessing,
    *,
    rows: int,
    seed: int = 0,
    among: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Picks readable images at random, one class after the other, `among` these indices alone.

    Gives their indices and themselves, uint8 (N, S, S, 3), in the order of the classes.

    Raises:
        DataError: none of them can be read.
    """
    among = np.arange(len(source)) if among is None else np.asarray(among)
    order = among[np.random.default_rng(seed).permutation(len(among))]
    labels = source.labels[order]
    turn = np.empty(len(order), np.int64)  # an image's place among its class' own
    for label in range(len(source.class_names)):
        own = labels == label
        turn[own] = np.arange(own.sum())
    chosen, images, reasons = [], [], []
    for i in order[np.argsort(turn, kind="stable")]:
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


def _lay_out(
    source: Source,
    chosen: np.ndarray,
    images: np.ndarray,
    drawn: list[dict[str, np.ndarray]],
    *,
    title: str,
    subtitle: str,
) -> Image.Image:
    font, small = partial(_font, 17), _font(13)
    name_px = 170
    captions = _CAPTION_PX if "share" in drawn[0] else 0
    step = _CELL_PX + captions + _ROW_GAP
    left = _MARGIN + name_px
    width = left + (1 + DRAWS) * (_CELL_PX + _GAP) + 2 * _GAP + _MARGIN
    lines = _wrap(title, font(bold=True), width - 2 * _MARGIN)
    top = _TITLE_PX + 24 * (len(lines) - 1)
    sheet = Image.new("RGB", (width, top + len(images) * step + _MARGIN - _ROW_GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        pen.text((_MARGIN, 20 + 24 * number), line, _INK, font(bold=True))
    pen.text((_MARGIN, top - 46), subtitle, _MUTED, small)
    pen.text((left, top - 20), "original", _MUTED, small)
    columns = [left + i * (_CELL_PX + _GAP) + (2 * _GAP if i else 0) for i in range(1 + DRAWS)]
    pen.text((columns[1], top - 20), "as the training may see it", _MUTED, small)
    for row, index in enumerate(chosen):
        y, label = top + row * step, int(source.labels[index])
        name = drawable(source.class_names[label], label, width=17)
        pen.text((_MARGIN, y + _CELL_PX // 2 - 20), name, _INK, font(bold=True))
        file = drawable(Path(source.ids[index]).name, width=20)
        pen.text((_MARGIN, y + _CELL_PX // 2 + 4), file, _MUTED, small)
        sheet.paste(_cell(images[row]), (columns[0], y))
        for x, view in zip(columns[1:], drawn, strict=True):
            sheet.paste(_cell(view["images"][row]), (x, y))
            if captions:
                text = _describe_mix(source, label, int(view["other"][row]), view["share"][row])
                pen.text((x, y + _CELL_PX + 2), text, _MUTED, small)
    return sheet


def _describe_mix(source: Source, label: int, other: int, share: float) -> str:
    own, theirs = (drawable(source.class_names[i], i, width=9) for i in (label, other))
    part = round(100 * float(share))
    return f"{part} % {own}" if part == 100 else f"{part} {own}, {100 - part} {theirs}"


def _cell(pixels: np.ndarray) -> Image.Image:
    image, side = Image.fromarray(pixels), pixels.shape[0]
    if side < _CELL_PX:
        factor = math.ceil(_CELL_PX / side)
        image = image.resize((side * factor,) * 2, Image.Resampling.NEAREST)
    return image.resize((_CELL_PX,) * 2, Image.Resampling.LANCZOS)


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    from matplotlib.font_manager import FontProperties, findfont

    weight = "bold" if bold else "normal"
    return ImageFont.truetype(findfont(FontProperties(family=FONT, weight=weight)), size)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _write(path: Path, sheet: Image.Image) -> None:
    file = io.BytesIO()
    sheet.save(file, FORMATS[path.suffix.lower()], quality=92)
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(file.getvalue())
    except OSError as error:
        raise ConfigError(f"Cannot write {printable(path)}: {error.strerror}.") from None
