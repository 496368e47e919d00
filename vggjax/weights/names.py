"""Layer and parameter names: those of the layer table, and those that files use.

Keras 3.5 numbers layers by class (`conv2d_12`), a hand-written CNN has such names in every version,
and a custom head is `dense`, `dense_1`. For these the order decides:

- 8, 10, 13 or 16 convolutions, none of which has a name of the table, are VGG11, 13, 16 or 19 if
  their channels form the chain of a VGG; as many batch normalizations belong to them;
- dense layers are `fc1`, `fc2` ... and the last one `predictions` if they form a chain and none of
  them already has one of these names for another position.

All other layers keep the file's names, which the strict comparison with a model then reports.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from vggjax.errors import WeightsError, join_names, printable
from vggjax.models.arch import CONVS, Arch

PARAMS = ("kernel", "scale", "bias", "mean", "var")
"""The parameters of layers, in the order in which Keras lists them."""

BATCH_NORM = PARAMS[1:]
"""The parameters of a batch normalization."""

TABLE_NAME = re.compile(r"block[1-9]_(conv|bn)[1-9]|fc[1-9]|predictions")
"""The names that layers with weights have in the layer table."""

_SUFFIXED = re.compile(rf"({TABLE_NAME.pattern})(_\d+)")
_KERAS_NAME = re.compile(r"(conv2d|convolution2d)(_\d+)?")
_BASE_NAME = re.compile(r"block([1-9])_(conv|bn)([1-9])")

T = TypeVar("T")


@dataclass
class Layer:
    """A layer of a file: its name there, and its arrays or spans."""

    name: str
    params: dict[str, Any]

    @property
    def kind(self) -> str:
        """`conv`, `dense`, `bn`, or `other` if the arrays are none of these."""
        kernel = self.params.get("kernel")
        if kernel is None:
            return "bn" if "mean" in self.params else "other"
        return {4: "conv", 2: "dense"}.get(kernel.ndim, "other")


def in_base(name: str) -> bool:
    """Return whether a layer's name belongs to the convolutional base, and not to a head."""
    return bool(_BASE_NAME.fullmatch(name))


def layer_order(name: str) -> tuple:
    """Return the sort key of a layer: the blocks, `fc1`, `fc2` ..., `predictions`, other names."""
    if match := _BASE_NAME.fullmatch(name):
        block, kind, i = match.groups()
        return (0, int(block), int(i), kind == "bn")
    if re.fullmatch(r"fc[1-9]", name):
        return (1, int(name[2:]))
    return (2,) if name == "predictions" else (3,)


def natural_order(key: str) -> list[tuple[int, str]]:
    """Sort `conv2d_2` before `conv2d_10`, and `conv2d` before both."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", key)]


def has_package_names(names: Iterable[str]) -> bool:
    """Return whether any name is one of this package's own files, as in `block1_conv1.kernel`."""
    return any(name.endswith(".kernel") for name in names)


def group_by_layer(arrays: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Group arrays named `LAYER.PARAM` into `{layer: {parameter: array}}`, in the table's order."""
    layers: dict[str, dict[str, T]] = {}
    for name, array in arrays.items():
        layer, _, param = name.rpartition(".")
        if not layer or param not in PARAMS:
            raise WeightsError(
                f"it holds {printable(name)!r}; names must be LAYER.PARAM, as in "
                f"block1_conv1.kernel, with PARAM one of {', '.join(PARAMS)}.",
                code="E_NAME",
            )
        layers.setdefault(layer, {})[param] = array
    return in_table_order(layers)


def in_table_order(layers: Mapping[str, Mapping[str, T]]) -> dict[str, dict[str, T]]:
    """Return the layers in the table's order, and their parameters in the order of `PARAMS`."""
    return {
        layer: {param: layers[layer][param] for param in PARAMS if param in layers[layer]}
        for layer in sorted(layers, key=layer_order)
    }


def with_table_names(layers: list[Layer]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return `{name: arrays}` in the table's order, with the table's names where they apply.

    The second value has a line about convolutions that are named by their order, and one about
    layers on top of a base that are not all dense, which are left out.
    """
    notes: list[str] = []
    _strip_suffix(layers)
    given = [layer.name for layer in layers]
    convs, norms, dense = (
        [layer for layer in layers if layer.kind == kind] for kind in ("conv", "bn", "dense")
    )
    table = list(zip(dense, _top_names(dense), strict=True))
    blocks = [layer.name for layer in convs if in_base(layer.name)]
    if not blocks:
        blocks = block_names([layer.params["kernel"].shape for layer in convs])
        table += zip(convs, blocks, strict=False)
        if blocks and not all(_KERAS_NAME.fullmatch(layer.name) for layer in convs):
            notes.append(
                f"named the layers by their order, from {printable(convs[0].name)} (block1_conv1) "
                f"to {printable(convs[-1].name)} ({blocks[-1]})"
            )
    if blocks and not any(in_base(norm.name) for norm in norms):
        base = convs if len(blocks) == len(convs) else [k for k in convs if in_base(k.name)]
        widths = [layer.params["kernel"].shape[3] for layer in base]
        start = start_of_norms(widths, [math.prod(norm.params["mean"].shape) for norm in norms])
        if start is not None:
            bn_names = (name.replace("conv", "bn") for name in blocks)
            table += zip(norms[start:], bn_names, strict=False)
    for layer, name in table:
        layer.name = name

    weights: dict[str, dict[str, Any]] = {}
    for layer in layers:
        if layer.name in weights:
            name = printable(layer.name)
            raise WeightsError(f"two layers have the name {name!r}.", code="E_DUPLICATE")
        weights[layer.name] = layer.params
    top = [layer for layer in layers if not in_base(layer.name)]
    strange = [layer.name for layer in top if layer.kind != "dense"]
    if strange and len(top) < len(layers) and not any(map(_SUFFIXED.fullmatch, strange)):
        names = [
            printable(name)
            for name, layer in zip(given, layers, strict=True)
            if not in_base(layer.name)
        ]
        notes.append(
            f"left out the top ({join_names(names)}): {printable(strange[0])} is no dense layer"
        )
        weights = {name: params for name, params in weights.items() if in_base(name)}
    return in_table_order({k: params for k, params in weights.items() if params}), notes


def _strip_suffix(layers: list[Layer]) -> None:
    """Remove the suffix that Keras gives all layers of a network built again, block1_conv1_1."""
    matches = [(layer, _SUFFIXED.fullmatch(layer.name)) for layer in layers]
    suffixes = {match[3] for _, match in matches if match}
    if len(suffixes) == 1 and not any(TABLE_NAME.fullmatch(layer.name) for layer in layers):
        for layer, match in matches:
            layer.name = match[1] if match else layer.name


def start_of_norms(widths: list[int], norm_widths: list[int]) -> int | None:
    """Return where the batch normalizations of convolutions begin among those of a model.

    Others are in its top. Return None if there are too few for every convolution to have one.

    Raises:
        WeightsError: there are enough, but not in the order of the convolutions.
    """
    for start in range(len(norm_widths) - len(widths) + 1):
        if norm_widths[start : start + len(widths)] == widths:
            return start
    if len(norm_widths) < len(widths):
        return None
    raise WeightsError(
        f"its {len(norm_widths)} batch normalizations do not follow its {len(widths)} convolutions "
        f"in the order of their names.",
        code="E_UNEXPECTED",
    )


def block_names(kernels: list[tuple[int, ...]]) -> list[str]:
    """Return the names of convolutions with these kernels, HWIO, in order; [] if not a VGG's.

    The count alone would accept another network of 13 convolutions. So the channels must form a
    chain, with one width in each block.
    """
    for name, counts in CONVS.items():
        if len(kernels) != sum(counts) or any(len(kernel) != 4 for kernel in kernels):
            continue
        firsts = [sum(counts[:block]) for block in range(len(counts))]
        arch = Arch(name, counts, tuple(kernels[i][3] for i in firsts))
        if kernels == [(3, 3, *channels) for channels in arch.conv_channels().values()]:
            return list(arch.conv_channels())
    return []


def _top_names(dense: list[Layer]) -> list[str]:
    given = [layer.name for layer in dense]
    wanted = [f"fc{i}" for i in range(1, len(dense))] + ["predictions"] if dense else []
    kernels = [layer.params["kernel"].shape for layer in dense]
    chained = all(a[1] == b[0] for a, b in zip(kernels, kernels[1:], strict=False))
    clash = any(name in wanted and name != want for name, want in zip(given, wanted, strict=True))
    return wanted if chained and not clash else given
