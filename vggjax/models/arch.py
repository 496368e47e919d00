"""The table of VGG networks: convolutions per block, widths, and the ordered layer names.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"
(arXiv:1409.1556), table 1: columns A, B, D and E are VGG11, 13, 16 and 19. The names are Keras'
(`block1_conv1` ... `block5_pool`); the batch normalization after `block1_conv1` is `block1_bn1`.
The rest of the package refers to layers by these names only. This file imports no jax.
"""

import fnmatch
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vggjax.errors import ConfigError, join_names, unknown_name
from vggjax.models.head import PUBLISHED_TOP, Head

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Layer -> parameter -> shape."""

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
"""The smallest image that five poolings leave a pixel of."""

EPSILON = 1e-5
"""Added to the variance by batch normalization: torchvision's default, as vgg*_bn were trained."""


class Backbone(ABC):
    """The ordered, named layers before a head; network.py runs any of them.

    `block2_conv1` is a 3x3 convolution at stride 1, `block2_bn1` its batch normalization,
    `block2_pool` a 2x2 max pooling, `block2_drop1` dropout; `gray` converts RGB to one channel.
    """

    name: str
    image_size = 224
    """Default image size in px."""
    top: Head | None = None
    """The head that `include_top=True` builds: Keras' published one, for VGG."""

    @abstractmethod
    def conv_channels(self) -> dict[str, tuple[int, int]]:
        """Map each convolution's name, in order, to (input channels, output channels)."""

    @abstractmethod
    def layers(self) -> tuple[str, ...]:
        """Return every layer name in execution order."""

    @property
    def padding(self) -> str:
        """`SAME` keeps the size of the map in a convolution, `VALID` reduces it by 2 px."""
        return "SAME"

    def dropout_rates(self) -> dict[str, float]:
        """Map each dropout layer's name to its rate."""
        return {}

    def aliases(self) -> dict[str, str]:
        """Map the names that other libraries have for a layer's output to the layer."""
        return {}

    def weighted_layers(self) -> tuple[str, ...]:
        """Return the layers with parameters: those that can be frozen or unfrozen."""
        return tuple(name for name in self.layers() if "_conv" in name or "_bn" in name)

    @property
    def width(self) -> int:
        """Channels of the last layer's output."""
        return list(self.conv_channels().values())[-1][1]

    def map_size(self, image_size: int) -> int:
        """Return the side in px of the last feature map, 0 if the image is too small."""
        size, border = image_size, 2 if self.padding == "VALID" else 0
        for name in self.layers():
            if "_conv" in name:
                size -= border
            elif name.endswith("_pool"):
                size //= 2
        return max(size, 0)

    @property
    def min_size_px(self) -> int:
        """The smallest image size that leaves a feature map of at least 1 px."""
        return next(size for size in itertools.count(1) if self.map_size(size))

    def check_size(self, *sides: int) -> None:
        """Raise ConfigError unless images with these sides in px leave a feature map."""
        if any(side < self.min_size_px for side in sides):
            raise ConfigError(
                f"{self.name} downsamples its input and needs images of {self.min_size_px} px or "
                f"more; got {'x'.join(map(str, sides))} px."
            )


@dataclass(frozen=True)
class Arch(Backbone):
    """A VGG: convolutions per block, the widths of the blocks, and batch normalization."""

    name: str
    convs: tuple[int, ...]
    widths: tuple[int, ...] = WIDTHS
    batch_norm: bool = False
    top = PUBLISHED_TOP

    def conv_channels(self) -> dict[str, tuple[int, int]]:
        """Map each convolution's name, in order, to (input channels, output channels)."""
        channels, width_in = {}, 3
        for block, (count, width) in enumerate(zip(self.convs, self.widths, strict=True), 1):
            for i in range(1, count + 1):
                channels[f"block{block}_conv{i}"] = (width_in, width)
                width_in = width
        return channels

    def layers(self) -> tuple[str, ...]:
        """Return every layer name of the convolutional base in execution order."""
        kinds = ("conv", "bn") if self.batch_norm else ("conv",)
        names: list[str] = []
        for block, count in enumerate(self.convs, 1):
            names += [f"block{block}_{kind}{i}" for i in range(1, count + 1) for kind in kinds]
            names.append(f"block{block}_pool")
        return tuple(names)

    def aliases(self) -> dict[str, str]:
        """Map torchvision's and Caffe's names to the layers: `features.15`, `relu3_3`, `pool3`.

        `conv3_3` is `relu3_3`, as in Caffe's networks, which compute the ReLU in place. An output
        before its ReLU has no layer; nor has torchvision's name of it an entry.
        """
        names, index = {}, 0
        for layer in self.layers():
            block, kind = layer[5], layer[7:]
            if kind == "pool":
                names[f"pool{block}"] = layer
            elif not (self.batch_norm and kind.startswith("conv")):  # followed by a ReLU
                index += 1
                names[f"relu{block}_{kind[-1]}"] = names[f"conv{block}_{kind[-1]}"] = layer
            names[f"features.{index}"] = layer
            index += 1
        return names


ARCHS = {
    name + suffix: Arch(name + suffix, convs, batch_norm=bool(suffix))
    for suffix in ("", "_bn")
    for name, convs in CONVS.items()
}
"""The table: vgg11 ... vgg19 and vgg11_bn ... vgg19_bn; `register_arch` adds to it."""


def register_arch(arch: Arch) -> Arch:
    """Add a network to the table under its name, and return it.

    In this process, weight files and `Config.model` then accept that name.

    Raises:
        ConfigError: the table has a different network of this name, the name is not of the form
            `my_vgg`, or the network is not five blocks of 1 to 9 convolutions with positive widths.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", arch.name):
        raise ConfigError(
            f"A network's name starts with a letter and has only letters, digits and _; "
            f"got {arch.name!r}."
        )
    if ARCHS.get(arch.name, arch) != arch:
        raise ConfigError(
            f"The name {arch.name!r} is taken by a different network. Choose another for {arch}."
        )
    # Layer names hold one digit for the convolution; MIN_SIZE_PX relies on five poolings.
    has_five_blocks = len(arch.convs) == len(arch.widths) == 5
    if not has_five_blocks or not all(0 < n < 10 for n in arch.convs) or min(arch.widths) < 1:
        raise ConfigError(
            f"A network has five blocks of 1 to 9 convolutions, with widths above 0; got {arch}."
        )
    return ARCHS.setdefault(arch.name, arch)


def get_arch(name: str) -> Arch:
    """Return the VGG network of that name (`vgg16`, `vgg11_bn` ...).

    Raises:
        ConfigError: there is no such network; the message names the nearest one.
    """
    if name not in ARCHS:
        raise ConfigError(unknown_name("model", name, ARCHS))
    return ARCHS[name]


def match_layers(patterns: Iterable[str], layers: Iterable[str]) -> tuple[str, ...]:
    """Return the layers that `patterns` name, in the order of `layers`.

    A pattern is `none`, `all`, a block (`block5`), a layer (`block5_conv3`) or a glob
    (`block?_conv1`). `layers` are all the names to choose from.

    Raises:
        ConfigError: a pattern matches no layer, or `none` is combined with another pattern.
    """
    patterns, layers = tuple(patterns), tuple(layers)
    if "none" in patterns and len(patterns) > 1:
        raise ConfigError(
            f"`unfreeze` cannot combine none with other names; got {' '.join(patterns)}."
        )
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
            raise ConfigError(unknown_name("layer in `unfreeze`", pattern, choices))
    return tuple(name for name in layers if name in chosen)


def shape_problems(given: Shapes, wanted: Shapes) -> dict[str, list[str]]:
    """Return the parameters that are `missing`, `unexpected` or of `wrong shape`, if there are any.

    Parameters are named as in `block1_conv1/kernel`.
    """
    received, expected = (
        {f"{layer}/{k}": tuple(shape) for layer in shapes for k, shape in shapes[layer].items()}
        for shapes in (given, wanted)
    )
    problems = {
        "missing": [key for key in expected if key not in received],
        "unexpected": [key for key in received if key not in expected],
        "wrong shape": [
            f"{key} is {received[key]}, the model has {expected[key]}"
            for key in expected
            if key in received and received[key] != expected[key]
        ],
    }
    return {kind: keys for kind, keys in problems.items() if keys}


def list_problems(problems: Mapping[str, list[str]]) -> str:
    """Return the text of `shape_problems` for a message."""
    return "; ".join(f"{kind}: {join_names(keys)}" for kind, keys in problems.items())
