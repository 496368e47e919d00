"""Gives a VGG's arrays torchvision's or timm's names and orders (see torchvision.py), for writing.

What is written, torch loads strictly: `model.load_state_dict(...)` with nothing missing or left.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from vggjax.errors import WeightsError, printable
from vggjax.weights.layout import CONV, DENSE, VECTOR, Turn, flattened, turned_back, window
from vggjax.weights.names import TABLE_NAME, in_base, order
from vggjax.weights.safetensors import TensorToWrite
from vggjax.weights.torch.torchvision import LINEAR, NORM, TIMM_TOP, TRACKED, Style

if TYPE_CHECKING:
    from vggjax.models.params import Weights


def torch_tensors(weights: "Weights", style: Style) -> list[TensorToWrite]:
    """Gives the tensors of a file that torch loads strictly, under the style's names.

    The top may be any head: `classifier.0`, `.3` ... are its dense layers, as if a relu and a
    dropout stood behind each. timm's top is two hidden layers and the last one, or none.

    Raises:
        WeightsError: layers that are no VGG's, or a top that timm cannot have.
    """
    modules = dict(_modules_of(weights, style))
    written: list[TensorToWrite] = []
    for module, (layer, turn) in modules.items():
        params = weights[layer]
        for key, param in (NORM if "_bn" in layer else LINEAR).items():
            if param in params:
                array, how = params[param], turn if param == "kernel" else VECTOR
                written.append(
                    TensorToWrite(
                        f"{module}.{key}",
                        how.theirs(array.shape),
                        lambda array=array, how=how: turned_back(array, how),
                    )
                )
        if "_bn" in layer:
            zero = np.zeros(1, np.int64)
            written.append(
                TensorToWrite(f"{module}.{TRACKED}", (), lambda zero=zero: [zero], "I64")
            )
    return written


def _modules_of(weights: "Weights", style: Style) -> Iterator[tuple[str, tuple[str, Turn]]]:
    """Gives (torch's module, (layer, turn)) in the order of the layers."""
    layers = sorted(weights, key=order)
    if strange := [layer for layer in layers if not TABLE_NAME.fullmatch(layer)]:
        raise WeightsError(
            f"The layer {printable(strange[0])!r} is none of a VGG's; torchvision and timm have no "
            f"name for it.",
            code="E_NAME",
        )
    base, top = [k for k in layers if in_base(k)], [k for k in layers if not in_base(k)]
    if not base:
        raise WeightsError("These weights have no convolutional base.", code="E_MISSING")
    at, before, width = 0, "block1", 0
    for layer in base:
        block = layer.split("_")[0]
        at += block != before  # the pooling between
        yield f"features.{at}", (layer, VECTOR if "_bn" in layer else CONV)
        # A relu stands behind each convolution, or behind its batch normalization.
        at += 1 if layer.replace("conv", "bn") in base and "_conv" in layer else 2
        before = block
        if "_conv" in layer:
            width = weights[layer]["kernel"].shape[-1]
    if not top:
        return
    inputs = weights[top[0]]["kernel"].shape[0]
    if inputs % width:
        raise WeightsError(
            f"{top[0]}'s kernel takes {inputs:,} inputs, no multiple of the base's {width}.",
            code="E_SHAPE",
        )
    if style == "torchvision":
        for i, layer in enumerate(top):
            yield f"classifier.{3 * i}", (layer, DENSE if i else flattened(width))
        return
    side = math.isqrt(inputs // width)
    if (
        top[:2] != ["fc1", "fc2"]
        or top[2:] not in ([], ["predictions"])
        or (side**2 * width != inputs)
    ):
        raise WeightsError(
            f"timm's VGG has the top fc1, fc2, predictions on a square map; these weights have "
            f"{', '.join(top)}. Write them as torchvision's, which may have any.",
            code="E_TOP",
        )
    turns = (window(side), window(1), DENSE)
    for module, layer, turn in zip(TIMM_TOP, top, turns, strict=False):
        yield module, (layer, turn)
