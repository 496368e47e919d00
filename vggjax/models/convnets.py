"""Small convnets, the baselines for transfer learning, as frozen specs with a text form.

`gray-32-pool-32` means: convert to gray, a 3x3 convolution of 32 channels with relu, a 2x2 max
pooling, another convolution of 32. `bn` after a width is batch normalization, a number with a
decimal point is dropout, and a leading `same` pads the convolutions, which otherwise reduce the map
by 2 px, Keras' default. Layers are named as in VGG, `block1_conv1` ... `block2_drop1`; a pooling
ends a block. This file imports no jax.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vggjax.errors import ConfigError, unknown_name
from vggjax.models.arch import ARCHS, Backbone
from vggjax.models.head import Head

PREFIX = "cnn-"
"""Marks a spec where a network name is expected: `cnn-gray-32-pool-32`."""


@dataclass(frozen=True)
class ConvSpec(Backbone):
    """The layers of a small convnet before its head.

    Raises:
        ConfigError: the text does not have the form above.
    """

    text: str
    name: str = ""
    top: Head | None = None
    image_size: int = 32

    def __post_init__(self) -> None:
        """Validate the text and derive the name from it."""
        if not self.name:
            object.__setattr__(self, "name", PREFIX + self.text)
        list(self._layers_and_words())

    @property
    def _is_gray(self) -> bool:
        return self.text.startswith("gray-")

    @property
    def padding(self) -> str:
        """`SAME` or `VALID`, for every convolution."""
        return "SAME" if "same" in self.text.split("-")[:2] else "VALID"

    def _layers_and_words(self) -> Iterator[tuple[str, str]]:
        """Yield each layer's name with the word of the text that describes it, in order."""
        words = self.text.split("-")
        for first in ("gray", "same"):
            words = words[1:] if words[0] == first and len(words) > 1 else words
        if self._is_gray:
            yield "gray", "gray"
        block, convs, drops, is_pooled, previous = 1, 0, 0, False, ""
        for word in words:
            if word.isdecimal() and int(word) > 0:
                if is_pooled:
                    block, convs, drops, is_pooled = block + 1, 0, 0, False
                convs += 1
                kind, number = "conv", str(convs)
            elif word == "bn" and previous == "conv":
                kind, number = "bn", str(convs)
            elif word == "pool" and convs and not is_pooled:
                is_pooled, kind, number = True, "pool", ""
            elif _is_rate(word) and convs and previous != "drop":
                drops += 1
                kind, number = "drop", str(drops)
            else:
                raise ConfigError(
                    f"A convnet is written [gray-][same-]WIDTH[-bn][-pool][-DROPOUT]-WIDTH ..., "
                    f"dropout with its decimal point, as in gray-32-bn-pool-64-pool-0.25; got "
                    f"{self.text!r}."
                )
            if max(block, convs, drops) > 9:  # the names in weight files have one digit
                raise ConfigError(
                    f"A convnet has at most 9 blocks of at most 9 convolutions; got {self.text}."
                )
            previous = kind
            yield f"block{block}_{kind}{number}", word

    def layers(self) -> tuple[str, ...]:
        """Return every layer name in execution order."""
        return tuple(name for name, _ in self._layers_and_words())

    def conv_channels(self) -> dict[str, tuple[int, int]]:
        """Map each convolution's name, in order, to (input channels, output channels)."""
        channels, width_in = {}, 1 if self._is_gray else 3
        for name, word in self._layers_and_words():
            if "_conv" in name:
                channels[name] = (width_in, int(word))
                width_in = int(word)
        return channels

    def dropout_rates(self) -> dict[str, float]:
        """Map each dropout layer's name to its rate."""
        return {name: float(word) for name, word in self._layers_and_words() if "_drop" in name}


def _is_rate(word: str) -> bool:
    try:
        return "." in word and 0.001 <= float(word) <= 0.999
    except ValueError:
        return False


_TOP = Head("flatten", (64,), outputs=10)
_WIDE_TOP = Head("flatten", (128,), outputs=10)
_DROPOUT_TOP = Head("flatten", (64,), 0.5, outputs=10)
_DEEP = "same-32-bn-32-bn-pool-64-bn-64-bn-pool-128-bn-128-bn-pool"
_DROPOUT = "32-bn-pool-0.25-64-bn-pool-0.25-64-bn-0.25"

CNNS = {
    spec.name: spec
    for spec in (
        ConvSpec("gray-32-pool-32", "mnist-cnn", _TOP, image_size=28),  # 258,090 parameters
        ConvSpec("32-pool-64-pool-64", "cifar10-cnn", _TOP),  # 122,570 parameters
        ConvSpec("32-pool-0.25-64-pool-0.25-64", "cifar10-cnn-dropout", _DROPOUT_TOP),
        ConvSpec("64-pool-128-pool-128", "cifar10-cnn-wide", _WIDE_TOP),
        ConvSpec(_DEEP, "cifar10-cnn-deep-bn", _WIDE_TOP),
        ConvSpec("32-64-64", "cnn-conv", _TOP),
        ConvSpec("32-bn-pool-64-bn-pool-64-bn", "cnn-pool-bn", _TOP),
        ConvSpec(_DROPOUT, "cnn-dropout", _DROPOUT_TOP),
    )
}
"""The convnets of the lessons, with their heads. `cifar10-cnn` is the network of TensorFlow's
tutorial "Convolutional Neural Network (CNN)"."""


def find_arch(name: str) -> Backbone:
    """Return the network `vgg16`, `cifar10-cnn`, or of a spec such as `cnn-gray-32-pool-32`.

    Raises:
        ConfigError: there is no such network, with the nearest name, or the spec is invalid.
    """
    if name in ARCHS:
        return ARCHS[name]
    if name in CNNS:
        return CNNS[name]
    text = name.removeprefix(PREFIX)
    first = text.split("-")[0]
    if text != name and (first in ("gray", "same") or first[:1].isdecimal()):
        return ConvSpec(text)
    hint = f" Or spell out a convnet, as in {PREFIX}32-pool-64-pool-64."
    raise ConfigError(unknown_name("model", name, (*ARCHS, *CNNS), hint=hint))
