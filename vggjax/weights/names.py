"""Gives layers of a file the names of the layer table where the file does not tell them.

Keras 3.5 numbers layers by class (`conv2d_12`), a convnet written by hand is named so in every
version, and a head of one's own is `dense`, `dense_1`. Then the order decides:

- 8, 10, 13 or 16 convolutions that Keras named itself (`conv2d_3`) are VGG11, 13, 16 or 19,
  provided that their channels follow one another as VGG's do; as many batch normalizations follow;
- dense layers are `fc1`, `fc2` ... and the last one `predictions`, provided that they form a chain
  and that none of them bears one of these names already for another place.

Whatever does not fit keeps the file's name, and the strict `assign` then calls it unexpected.
"""

import re
from dataclasses import dataclass

import numpy as np

from vggjax.errors import WeightsError, printable
from vggjax.models.arch import CONVS, Arch

TABLE_NAME = re.compile(r"block[1-9]_(conv|bn)[1-9]|fc[1-9]|predictions")
"""The names that layers with weights have in the layer table."""

_KERAS_NAME = re.compile(r"conv2d(_\d+)?")
_BASE_NAME = re.compile(r"block([1-9])_(conv|bn)([1-9])")


@dataclass
class Layer:
    """A layer as it stands in a file: its name there and its arrays, in the file's order."""

    name: str
    params: dict[str, np.ndarray]

    @property
    def kind(self) -> str:
        """`conv`, `dense`, `bn` or, where the arrays are none of these, `other`."""
        kernel = self.params.get("kernel")
        if kernel is None:
            return "bn" if "mean" in self.params else "other"
        return {4: "conv", 2: "dense"}.get(kernel.ndim, "other")


def in_base(name: str) -> bool:
    """Whether the name is one of the convolutional base, and not of a head."""
    return bool(_BASE_NAME.fullmatch(name))


def order(name: str) -> tuple:
    """Sorts layers as they run: each block's, then `fc1`, `fc2` ..., `predictions`, then others."""
    if match := _BASE_NAME.fullmatch(name):
        block, kind, i = match.groups()
        return (0, int(block), int(i), kind == "bn")
    if re.fullmatch(r"fc[1-9]", name):
        return (1, int(name[2:]))
    return (2,) if name == "predictions" else (3,)


def named(layers: list[Layer]) -> dict[str, dict[str, np.ndarray]]:
    """Gives `{name: arrays}` in the order of the table, with the table's names where they hold.

    Raises:
        WeightsError: two layers end up with one name.
    """
    convs = [layer for layer in layers if layer.kind == "conv"]
    names = {id(layer): layer.name for layer in layers}
    if convs and all(_KERAS_NAME.fullmatch(layer.name) for layer in convs):
        blocks = _block_names(convs)
        norms = [layer for layer in layers if layer.kind == "bn"]
        names |= {id(layer): name for layer, name in zip(convs, blocks, strict=False)}
        if len(norms) == len(blocks):
            bns = [name.replace("conv", "bn") for name in blocks]
            names |= {id(layer): name for layer, name in zip(norms, bns, strict=True)}
    dense = [layer for layer in layers if layer.kind == "dense"]
    names |= {id(layer): name for layer, name in zip(dense, _top_names(dense), strict=True)}

    weights: dict[str, dict[str, np.ndarray]] = {}
    for layer in layers:
        name = names[id(layer)]
        if name in weights:
            raise WeightsError(
                f"two layers are both called {printable(name)!r}.", code="E_DUPLICATE"
            )
        weights[name] = layer.params
    return {name: weights[name] for name in sorted(weights, key=order)}


def _block_names(convs: list[Layer]) -> list[str]:
    # By count alone a stranger's network of 13 convolutions would pass: the channels must chain,
    # and be one width within each block.
    for name, counts in CONVS.items():
        if len(convs) != sum(counts):
            continue
        kernels = [layer.params["kernel"].shape for layer in convs]
        firsts = [sum(counts[:block]) for block in range(len(counts))]
        arch = Arch(name, counts, tuple(kernels[i][3] for i in firsts))
        expected = [(3, 3, *channels) for channels in arch.conv_channels().values()]
        if kernels == expected:
            return list(arch.conv_channels())
    return []


def _top_names(dense: list[Layer]) -> list[str]:
    given = [layer.name for layer in dense]
    wanted = [f"fc{i}" for i in range(1, len(dense))] + ["predictions"] if dense else []
    kernels = [layer.params["kernel"].shape for layer in dense]
    chained = all(a[1] == b[0] for a, b in zip(kernels, kernels[1:], strict=False))
    clash = any(
        TABLE_NAME.fullmatch(name) and name != want
        for name, want in zip(given, wanted, strict=True)
    )
    return wanted if chained and not clash else given
