"""`DataSettings` and `InputSettings`: the dataset, its splits, and how images are decoded."""

from dataclasses import dataclass
from typing import Literal

from vggjax.data.augment.settings import setting


@dataclass(frozen=True)
class DataSettings:
    """Where the images and the results are."""

    dataset: str = setting("digits", non_empty=True)
    """A tfds name, a folder (root/<class>/* or root/{train,val,test}/<class>/*), a CSV file with
    the columns path,label[,split], or `digits`."""
    recipe: str | None = None
    """Set the defaults of this recipe; `vggjax recipes` lists them (in Python: `make_config`).
    `digits` has its own and uses it by default."""
    config: str | None = setting(None, non_empty=True)
    """Set defaults from a file, over those of its recipe: YAML, or a run's config.json, or its
    folder, whose workdir is left out. Flags win (in Python: `make_config`)."""
    workdir: str | None = setting(None, non_empty=True)
    """The run's folder; None is runs/<time>-<dataset>-<model>. An unfinished run is resumed."""
    seed: int = setting(0, at_least=0, below=2**32)
    """Seed of splits, shuffling, initialization, augmentation and dropout."""

    data_dir: str | None = None
    """Where datasets of tfds are kept, and archives are found that were put there by hand; None is
    tfds' default."""


@dataclass(frozen=True)
class InputSettings:
    """How images are split, decoded and resized."""

    split: str = "0.8,0.1,0.1"
    """Shares of train,val,test, stratified by class, for a dataset without splits; or slices of its
    splits, as in train[:80%],train[80%:90%],train[90%:]."""
    duplicates: Literal["near", "exact", "ignore"] = "near"
    """Keep duplicates in one split: near-duplicates too (saved again or resized), exact ones only,
    or none."""
    cross_validate: int = setting(0, at_least=0)
    """Number of folds of a cross-validation: as many runs, each with another test split, so that
    each image is tested once. 0 trains one run."""
    image_size: int = 224
    """Side in px of the model's input; at least 32 for VGG."""
    resize: Literal["squash", "crop"] = "squash"
    """`squash` the image to a square, or `crop` its center."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    """Interpolation of the resize, as in Keras' load_img."""
    preprocess: Literal["auto", "caffe", "torch", "unit"] = "auto"
    """Pixel values: `caffe` for Keras' weights, `torch`, or `unit` for x/255. `auto` is what the
    weights were trained with, and torch without weights."""
    cache_mb: int = setting(2048, at_least=0)
    """Keep decoded images in memory if they take at most this many MiB; 0 turns it off."""
    num_threads: int | None = setting(None, above=0)
    """Threads that decode images; None is one per core."""
    max_unreadable: float = setting(0.05, at_least=0, below=1)
    """Largest share of unreadable images in a split; more end the run."""

    augment: Literal["none", "flip", "crop-flip", "randaugment"] | None = None
    """Augmentation of the training images by preset; None is flip, or the augmentation settings
    that are given, alone. They override the preset's."""
