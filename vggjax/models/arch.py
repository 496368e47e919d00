"""The table of VGG networks: convolutions per block, widths, and the ordered names of their layers.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"
(arXiv:1409.1556), table 1: A, B, D and E are VGG11, 13, 16 and 19. The names are Keras'
(`block1_conv1` ... `block5_pool`); the batch normalization behind `block1_conv1` is `block1_bn1`.
Everything else in the package speaks of layers by these names. `Backbone` is what any table of
layers offers, also that of the small convnets (cnn.py). No jax here.
"""

import fnmatch
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from vggjax.errors import ConfigError, unknown_name

CONVS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
"""Convolutions in each of the five blocks; a 2x2 max pooling ends each block."""

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of each block's convolutions."""

MIN_SIZE_PX = 32
"""Five poolings halve the image five times: below 32 px nothing is left of it."""


class Backbone(ABC):
    """The layers before a head, by name and in order: all that network.py runs a network from.

    `block2_conv1` is a 3x3 convolution at stride 1, `block2_bn1` its batch normalization,
    `block2_pool` a 2x2 max pooling, `block2_drop1` dropout; `gray` makes one channel of three.
    """

    name: str
    image_size = 224
    """Side in px of the images that the network is known for."""
    padding = "SAME"
    """`SAME` keeps the map's size in a convolution, `VALID` takes 2 px off."""

    @abstractmethod
    def conv_channels(self) -> dict[str, tuple[int, int]]:
        """Maps each convolution's name, in order, to (channels in, channels out)."""

    @abstractmethod
    def layers(self) -> tuple[str, ...]:
        """Names every layer in the order in which it runs."""

    def dropout_rates(self) -> dict[str, float]:
        """Maps each dropout's name to its rate."""
        return {}

    def weighted_layers(self) -> tuple[str, ...]:
        """Names the layers that have parameters: what can be frozen or unfrozen."""
        return tuple(name for name in self.layers() if "_conv" in name or "_bn" in name)

    @property
    def width(self) -> int:
        """Channels of the last layer's map."""
        return list(self.conv_channels().values())[-1][1]

    def map_size(self, image_size: int) -> int:
        """Gives the side of the last layer's map for an image's side in px; 0 where none is."""
        size, lost = image_size, 2 if self.padding == "VALID" else 0
        for name in self.layers():
            if "_conv" in name:
                size -= lost
            elif name.endswith("_pool"):
                size //= 2
        return max(size, 0)

    @property
    def min_size_px(self) -> int:
        """The least side of an image of which something is left."""
        return next(size for size in itertools.count(1) if self.map_size(size))

    def check_size(self, image_size: int) -> int:
        """Gives the size back where the network can take it.

        Raises:
            ConfigError: below `min_size_px`.
        """
        if image_size < self.min_size_px:
            raise ConfigError(
                f"{self.name} makes images smaller on the way and needs {self.min_size_px} px or "
                f"more; got image size {image_size}."
            )
        return image_size


@dataclass(frozen=True)
class Arch(Backbone):
    """One row of the table: which layers there are before the head, and how wide they are."""

    name: str
    convs: tuple[int, ...]
    widths: tuple[int, ...] = WIDTHS
    batch_norm: bool = False

    def conv_channels(self) -> dict[str, tuple[int, int]]:
        """Maps each convolution's name, in order, to (channels in, channels out)."""
        channels, width_in = {}, 3
        for block, (count, width) in enumerate(zip(self.convs, self.widths, strict=True), 1):
            for i in range(1, count + 1):
                channels[f"block{block}_conv{i}"] = (width_in, width)
                width_in = width
        return channels

    def layers(self) -> tuple[str, ...]:
        """Names every layer of the convolutional base in the order in which it runs."""
        names = []
        for block, count in enumerate(self.convs, 1):
            for i in range(1, count + 1):
                names.append(f"block{block}_conv{i}")
                if self.batch_norm:
                    names.append(f"block{block}_bn{i}")
            names.append(f"block{block}_pool")
        return tuple(names)


ARCHS = {
    name + suffix: Arch(name + suffix, convs, batch_norm=bool(suffix))
    for suffix in ("", "_bn")
    for name, convs in CONVS.items()
}


def register_arch(arch: Arch) -> Arch:
    """Add a network to the table under its name, and return it.

    Weight files, `Config.model` and the command line then know the network by that name.

    Raises:
        ConfigError: the table has another network of this name, the name does not read like
            `my_vgg`, or the network does not have five blocks of 1 to 9 convolutions with widths
            from 1.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", arch.name):
        raise ConfigError(
            f"A network's name has letters, digits and _, a letter first; got {arch.name!r}."
        )
    if ARCHS.get(arch.name, arch) != arch:
        raise ConfigError(
            f"The table already has another network {arch.name!r}: {ARCHS[arch.name]}. Choose "
            f"another name for {arch}."
        )
    # One digit each in the layer names, and five poolings as in the other rows.
    if (
        len(arch.convs) != 5
        or len(arch.widths) != 5
        or not all(1 <= count <= 9 for count in arch.convs)
        or not all(width >= 1 for width in arch.widths)
    ):
        raise ConfigError(
            f"A network has five blocks of 1 to 9 convolutions, with widths from 1; got {arch}."
        )
    return ARCHS.setdefault(arch.name, arch)


def get_arch(name: str) -> Arch:
    """Looks a network up by name (`vgg16`, `vgg11_bn` ...).

    Raises:
        ConfigError: no such network; the message names the nearest one.
    """
    if name not in ARCHS:
        raise ConfigError(unknown_name("model", name, ARCHS))
    return ARCHS[name]


def match_layers(
    patterns: Iterable[str], layers: Iterable[str], *, flag: str = "--unfreeze"
) -> tuple[str, ...]:
    """Resolves patterns to the layers that they name, in the order of `layers`.

    A pattern is `none`, `all`, a block (`block5`), a layer (`block5_conv3`) or a glob
    (`block?_conv1`). `layers` are all the names to choose from; `flag` is named in the error.

    Raises:
        ConfigError: a pattern that names no layer, or `none` beside another pattern.
    """
    patterns, layers = tuple(patterns), tuple(layers)
    if "none" in patterns and len(patterns) > 1:
        raise ConfigError(f"{flag} none cannot stand beside other names; got {' '.join(patterns)}.")
    blocks = tuple(dict.fromkeys(name.split("_")[0] for name in layers if "_" in name))
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern == "none":
            continue
        if pattern == "all":
            chosen.update(layers)
        elif pattern in blocks:
            chosen.update(name for name in layers if name.startswith(f"{pattern}_"))
        elif matched := fnmatch.filter(layers, pattern):
            chosen.update(matched)
        else:
            choices = ("none", "all", *blocks, *layers)
            raise ConfigError(unknown_name(f"layer in {flag}", pattern, choices))
    return tuple(name for name in layers if name in chosen)
