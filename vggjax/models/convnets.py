"""The small convnets that transfer learning is compared with, as frozen specs with a text form.

`gray-32-pool-32` reads: make the image gray, a 3x3 convolution of 32 channels with its relu, a
2x2 max pooling, another convolution of 32. `bn` behind a width is its batch normalization, a number
with a point is dropout, and `same` in front pads the convolutions, which otherwise take 2 px off,
as Keras' do unless told. Layers are named as VGG's are, `block1_conv1` ... `block2_drop1`: a
pooling ends a block. So VGG itself could be written this way.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from vggjax.errors import ConfigError
from vggjax.models.arch import Backbone
from vggjax.models.head import Head
from vggjax.models.kernels.conv import convolve
from vggjax.models.network import Network

PREFIX = "cnn-"
"""Stands before a spec where a network's name is expected: `cnn-gray-32-pool-32`."""


@dataclass(frozen=True)
class ConvSpec(Backbone):
    """The layers before the head of a small convnet.

    Raises:
        ConfigError: a text that does not have that form.
    """

    text: str
    name: str = ""
    top: Head | None = None
    """The head that the net's own lesson gives it."""
    image_size: int = 32
    """Side in px of its lesson's images."""

    def __post_init__(self) -> None:
        """Refuses what cannot be built."""
        if not self.name:
            object.__setattr__(self, "name", PREFIX + self.text)
        list(self._rows())

    def __str__(self) -> str:
        """Gives the text form."""
        return self.text

    def _words(self) -> list[str]:
        """Gives the words behind `gray` and `same`, which may only stand in front."""
        words = self.text.split("-")
        for first in ("gray", "same"):
            words = words[1:] if words[0] == first and len(words) > 1 else words
        return words

    @property
    def is_gray(self) -> bool:
        """Whether the images are made gray first."""
        return self.text.startswith("gray-")

    @property
    def padding(self) -> str:
        """`SAME` or `VALID`, of every convolution."""
        return "SAME" if "same" in self.text.split("-")[:2] else "VALID"

    def _rows(self) -> Iterator[tuple[str, str]]:
        """Yields (layer, word) in order."""
        if self.is_gray:
            yield "gray", "gray"
        block, convs, drops, is_pooled, before = 1, 0, 0, False, ""
        for word in self._words():
            if word.isdecimal() and int(word) > 0:
                if is_pooled:
                    block, convs, drops, is_pooled = block + 1, 0, 0, False
                convs, kind, number = convs + 1, "conv", convs + 1
            elif word == "bn" and before == "conv":
                kind, number = "bn", convs
            elif word == "pool" and convs and not is_pooled:
                is_pooled, kind, number = True, "pool", ""
            elif _is_rate(word) and convs and before != "drop":
                drops, kind, number = drops + 1, "drop", drops + 1
            else:
                raise ConfigError(_form(self.text))
            if max(block, convs, drops) > 9:  # the names in weight files have one digit
                raise ConfigError(
                    f"A convnet has 9 blocks, and 9 convolutions in each, at most; got {self.text}."
                )
            before = kind
            yield f"block{block}_{kind}{number}", word

    def layers(self) -> tuple[str, ...]:
        """Names every layer in the order in which it runs."""
        return tuple(name for name, _ in self._rows())

    def conv_channels(self) -> dict[str, tuple[int, int]]:
        """Maps each convolution's name, in order, to (channels in, channels out)."""
        channels, width_in = {}, 1 if self.is_gray else 3
        for name, word in self._rows():
            if "_conv" in name:
                channels[name] = (width_in, int(word))
                width_in = int(word)
        return channels

    def dropout_rates(self) -> dict[str, float]:
        """Maps each dropout's name to its rate."""
        return {name: float(word) for name, word in self._rows() if "_drop" in name}


def _is_rate(word: str) -> bool:
    try:
        return "." in word and 0.001 <= float(word) <= 0.999
    except ValueError:
        return False


def _form(text: str) -> str:
    return (
        f"A convnet is written [gray-][same-]WIDTH[-bn][-pool][-DROPOUT]-WIDTH ..., dropout with "
        f"its point, as in gray-32-bn-pool-64-pool-0.25; got {text!r}."
    )


def _named(name: str, text: str, top: str, image_size: int = 32) -> tuple[str, ConvSpec]:
    return name, ConvSpec(text, name, Head.parse(top), image_size)


CNNS: dict[str, ConvSpec] = dict(
    [
        _named("mnist-cnn", "gray-32-pool-32", "flatten-64-10", 28),  # 258,090 parameters
        _named("cifar10-cnn", "32-pool-64-pool-64", "flatten-64-10"),  # 122,570
        _named("cifar10-cnn-dropout", "32-pool-0.25-64-pool-0.25-64", "flatten-64-0.5-10"),
        _named("cifar10-cnn-wide", "64-pool-128-pool-128", "flatten-128-10"),
        _named(
            "cifar10-cnn-deep-bn",
            "same-32-bn-32-bn-pool-64-bn-64-bn-pool-128-bn-128-bn-pool",
            "flatten-128-10",
        ),
        _named("cnn-conv", "32-64-64", "flatten-64-10"),
        _named("cnn-pool-bn", "32-bn-pool-64-bn-pool-64-bn", "flatten-64-10"),
        _named("cnn-dropout", "32-bn-pool-0.25-64-bn-pool-0.25-64-bn-0.25", "flatten-64-0.5-10"),
    ]
)
"""The nets of the lessons. The first two are known by their numbers of parameters; cifar10-cnn is
that of TensorFlow's tutorial "Convolutional Neural Network (CNN)"."""


class CNN(Network):
    """A small convnet: the layers that `arch` spells and, unless None, a head.

    Args:
        arch: a name of the table, or a spec.
        include_top: True is the net as its lesson has it (10 classes); leave `head` alone then.
        head: the classifier on top, its number of outputs filled in.
        image_size: side in px that the head is built for; None is the lesson's.
        dtype: of the arithmetic, float32 or bfloat16; parameters and logits stay float32.
        conv: stands behind the signature of `lax.conv_general_dilated`.
        rngs: of the initialization.

    Raises:
        ConfigError: as `Network`; or a top that the net does not have.
    """

    def __init__(
        self,
        arch: str | ConvSpec = "cifar10-cnn",
        *,
        include_top: bool = False,
        head: Head | None = None,
        image_size: int | None = None,
        dtype: jax.typing.DTypeLike = jnp.float32,
        conv: Callable[..., jax.Array] = convolve,
        rngs: nnx.Rngs | None = None,
    ):
        spec = CNNS[arch] if isinstance(arch, str) else arch
        if include_top and head is not None:
            raise ConfigError(
                f"include_top=True is the net's own head; got head={str(head)!r} as well."
            )
        if include_top and spec.top is None:
            raise ConfigError(
                f"{spec.name} has no head of its own: give one (flatten-64-10), or none "
                "(--no-include-top)."
            )
        super().__init__(
            spec,
            head=spec.top if include_top else head,
            image_size=image_size,
            dtype=dtype,
            conv=conv,
            rngs=rngs,
        )
