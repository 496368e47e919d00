"""The settings of the data: where images come from, how they are split, read and cut to size.

A base class of Config, which checks them.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataSettings:
    """What is learned from; the first of Config's fields, and so of --help."""

    dataset: str = "digits"
    """A tfds name, a folder (root/<class>/* or root/{train,val,test}/<class>/*), a CSV with the
    columns path,label[,split], or `digits`."""
    recipe: str | None = None
    """Sets the defaults of what is not given, by name: `vggjax recipes` lists them (from Python:
    `make_config`). Without one, `digits` has its own."""
    workdir: str | None = None
    """The run's folder; None makes runs/<time>-<dataset>-<model>. An unfinished run resumes."""
    seed: int = 0
    """Of the splits, the order, the initialization and every random draw."""

    data_dir: str | None = None
    """Where tfds keeps prepared datasets; None is tfds' own place."""
    split: str = "0.8,0.1,0.1"
    """Shares of train,val,test, stratified by class, where the dataset has no splits; or slices
    of its own, as in train[:80%],train[80%:90%],train[90%:]."""
    duplicates: Literal["near", "exact", "ignore"] = "near"
    """Which images count as the same and stay in one split: also such as were saved anew or made
    smaller, only equal ones, or none."""
    cross_validate: int = 0
    """Train this many times, each time with another part of the images as the test split, and
    judge each image once; 0 trains once."""
    image_size: int = 224
    """Side in px of the images that the model sees; VGG's from 32."""
    resize: Literal["squash", "crop"] = "squash"
    """`squash` the whole image to a square, or `crop` the middle of it."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    """Of the resize, as in Keras' load_img."""
    preprocess: Literal["auto", "caffe", "torch", "unit"] = "auto"
    """Of the pixels: `caffe` for Keras' weights, `torch`, or `unit` for x/255. `auto` is caffe
    with weights and torch without."""
    cache_mb: int = 2048
    """Keep the decoded images in memory where they take no more than this; 0 switches it off."""
    num_threads: int | None = None
    """Threads that decode images; None is one for each core."""
    max_unreadable: float = 0.05
    """Go on while no more than this share of a split's images is unreadable."""

    augment: Literal["none", "flip", "crop-flip", "randaugment"] | None = None
    """Random changes to the training images, by name; the settings below win over it. None is
    flip where none of them is given, and what is given, alone, where one is."""
