"""What the recipe `best` stands for, by the number and the size of a dataset's images."""

import dataclasses
import statistics
from dataclasses import dataclass
from typing import Any

from vggjax.data.sources.open import open_source
from vggjax.data.splits.splits import make_splits, parse_split
from vggjax.training.config import Config

MANY_IMAGES = 50_000
"""More training images are too many to solve a head on, which has the features in memory."""

SMALL_PX, MEDIUM_PX = 48, 160
"""Images whose shorter sides are at most this long are small, or of medium size."""

_TUNING = dict(
    head="gap-classes", head_epochs=1, epochs=10, backbone_learning_rate=5e-5, layer_decay=0.8,
    crop_range=(0.5, 1.0), horizontal_flip=True, label_smoothing=0.1, ema=0.995,
)  # fmt: skip
"""How layers of small images are tuned, where `unfreeze` or `stages` ask for it."""

SAMPLED_IMAGES = 32
"""How many images are read to know their size."""


@dataclass(frozen=True)
class Choice:
    """What the recipe `best` stands for on some data."""

    recipe: str
    settings: dict[str, Any]
    """Fields of Config that are set beside the recipe's."""
    reason: str
    """A sentence without its period."""


def choose_recipe(config: Config) -> Choice:
    """Return what `best` stands for on a Config's data, by the number and the size of its images.

    Raises:
        VggjaxError: the data cannot be used, or an image cannot be read.
    """
    if not config.pretrained:
        return Choice("scratch", {}, "`weights` is none, so every layer trains from random weights")
    source = open_source(config.dataset, data_dir=config.data_dir, options=config)
    train = make_splits(source, parse_split(config.split), config.seed)["train"]
    rows = train[:: -(-len(train) // SAMPLED_IMAGES)]
    sides = [min(source.read(int(row)).pixels.shape[:2]) for row in rows]
    choice = choose_for(
        len(train),
        int(statistics.median(sides)),
        is_multilabel=source.targets is not None,
        unfreezes=config.unfrozen != ("none",),
    )
    if not config.stages:
        return choice
    settings = {k: v for k, v in choice.settings.items() if k not in ("head_epochs", "epochs")}
    return dataclasses.replace(choice, settings=settings)


def choose_for(
    num_images: int, side_px: int, *, is_multilabel: bool = False, unfreezes: bool = False
) -> Choice:
    """Return what `best` stands for with so many training images of this shorter side.

    Args:
        num_images: of the training split.
        side_px: the median.
        is_multilabel: whether images have several labels.
        unfreezes: whether pretrained layers are to be trained.
    """
    size, head = 224, "convs3-classes"
    if side_px <= MEDIUM_PX:
        size = 128
    if side_px <= SMALL_PX:
        size, head = 64, "convs2-classes"
    images = f"{num_images:,} training images of about {side_px} px"
    if is_multilabel:
        reason = f"{images} with several labels each, whose head cannot be solved"
    elif num_images > MANY_IMAGES:
        reason = f"{images}, too many to solve the head on their features in memory"
    elif unfreezes and side_px <= SMALL_PX:
        reason = f"{images}, whose layers were tuned best with random crops and a rate per block"
        return Choice("finetune", {"image_size": size} | _TUNING, reason)
    else:
        settings = {"image_size": size, "head": head}
        reason = f"{images}, and a solved head did best on such images"
        if unfreezes:
            reason += "; the layers of `unfreeze` or `stages` are tuned from there"
        return Choice("linear", settings, reason)
    return Choice("finetune", {"image_size": size}, reason)
