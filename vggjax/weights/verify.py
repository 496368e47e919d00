"""Says what a weight file is: layout, network, numbers, checksum, pixels, and what it computes.

The forward pass is plain numpy in float64, from an image of seeded noise: a second, slow and
independent telling of what a VGG computes (models/network.py is the first), whose result is the same on
every machine to the digits that its digest is taken of.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vggjax.errors import WeightsError, printable
from vggjax.models.arch import ARCHS, EPSILON, get_arch
from vggjax.weights.compatibility import Shapes, check_fits, network_of
from vggjax.weights.digests import Digests, check_sha256
from vggjax.weights.names import in_base
from vggjax.weights.weight_file import FileInfo, WeightFile

if TYPE_CHECKING:
    from vggjax.models.params import Weights

SEED = 0

PIXELS = {
    "caffe": "BGR, 0-255, minus (103.939, 116.779, 123.68), not scaled",
    "torch": "RGB/255, minus (0.485, 0.456, 0.406), over (0.229, 0.224, 0.225)",
    "unit": "RGB/255",
}
"""What each preprocessing means (data/preprocess.py)."""

RANGES = {"caffe": "-124 to 152", "torch": "-2.1 to 2.6", "unit": "0 to 1"}
"""The values that pixels then have."""


@dataclass(frozen=True)
class Verdict:
    """What a file turned out to be."""

    path: Path
    info: FileInfo
    digests: Digests
    network: str
    """The one of the table whose base this is."""
    top: tuple[str, ...]
    """Dense layers, as in "fc1 25088x4096"; empty without a top."""
    layers: dict[str, dict[str, tuple[int, ...]]]
    parameters: int
    notes: list[str]
    image_size: int
    outputs: np.ndarray
    """float64 logits, or without a top the last feature map, of the seeded image."""

    @property
    def digest(self) -> str:
        """SHA-256 of the outputs, to five digits of the largest."""
        scale = max(float(np.abs(self.outputs).max()), 1e-30)
        digits = np.round(self.outputs.ravel() / scale * 1e5).astype("<i8")
        return hashlib.sha256(f"{scale:.4e} ".encode() + digits.tobytes()).hexdigest()


def verify_file(
    path: Path, *, model: str | None = None, expect_sha256: str | None = None
) -> Verdict:
    """Reads a file whole, holds it against the table of networks, and runs it once.

    Args:
        path: any readable weight file.
        model: the network that it must hold; None is any of the table.
        expect_sha256: the checksum that it must have.

    Raises:
        WeightsError: it cannot be read, is incomplete or not finite, or not what was expected.
        ConfigError: there is no such model.
    """
    if model is not None:
        get_arch(model)
    path = Path(path)
    file, notes = WeightFile(path), []
    if expect_sha256 is not None:
        check_sha256(path, file.digests.sha256, expect_sha256)

    def check(found: Shapes) -> None:
        check_network(found, model, name=printable(path))

    weights = file.read(check=check, notes=notes)
    layers, info = file.shapes, file.info
    size = _image_size(layers, info.metadata)
    top = tuple(
        f"{layer} {'x'.join(map(str, params['kernel']))}"
        for layer, params in layers.items()
        if not in_base(layer)
    )
    return Verdict(
        path=path,
        info=info,
        digests=file.digests,
        network=network_of(layers) or info.metadata.get("arch", "unknown"),
        top=top,
        layers=layers,
        parameters=sum(array.size for params in weights.values() for array in params.values()),
        notes=notes,
        image_size=size,
        outputs=forward(weights, seeded_image(size), head=info.metadata.get("head", "")),
    )


def check_network(found: Shapes, model: str | None, *, name: str) -> None:
    """Refuses a base that is not the model's, or is none of the table's; any top may follow.

    Raises:
        WeightsError: with what is missing, unexpected or of another shape.
    """
    base = {layer: params for layer, params in found.items() if in_base(layer)}
    model = model or network_of(found) or _nearest(base)
    check_fits(base, expected_base(model), name=name, model=f"{model} without a top")
    before = None
    for layer, params in found.items():
        if in_base(layer):
            continue
        kernel, bias = params.get("kernel"), params.get("bias")
        if kernel is None or bias is None or len(kernel) != 2 or bias != kernel[1:]:
            raise WeightsError(
                f"{name}: {printable(layer)} is no dense layer with its bias: {dict(params)}.",
                code="E_SHAPE",
            )
        if before is not None and kernel[0] != before:
            raise WeightsError(
                f"{name}: {printable(layer)} takes {kernel[0]:,} inputs; the layer before it gives "
                f"{before:,}.",
                code="E_SHAPE",
            )
        before = kernel[1]


def expected_base(model: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """Gives every parameter's shape of a network's convolutional base.

    Raises:
        ConfigError: there is no such network.
    """
    arch, shapes = get_arch(model), {}
    for layer, (width_in, width) in arch.conv_channels().items():
        shapes[layer] = {"kernel": (3, 3, width_in, width), "bias": (width,)}
        if arch.batch_norm:
            names = ("scale", "bias", "mean", "var")
            shapes[layer.replace("conv", "bn")] = dict.fromkeys(names, (width,))
    return shapes


def _nearest(base: Shapes) -> str:
    """Names the network whose layers' names are most like these."""
    names = {model: set(expected_base(model)) for model in ARCHS}
    return min(names, key=lambda model: len(names[model] ^ set(base)))


def _image_size(layers: Shapes, metadata: Mapping[str, str]) -> int:
    """Gives the side of images, in px, that the top was made for; 64 where any would do."""
    top = next((params["kernel"] for k, params in layers.items() if not in_base(k)), None)
    width = [params["kernel"][3] for layer, params in layers.items() if "_conv" in layer][-1]
    if top is None or top[0] == width:
        return 64
    side = math.isqrt(top[0] // width)
    return 32 * side * (2 if metadata.get("head", "").startswith("avg2") else 1)


def seeded_image(size: int) -> np.ndarray:
    """Gives normal noise, float64 (S, S, 3): the same on every machine."""
    return np.random.default_rng(SEED).standard_normal((size, size, 3))


def forward(weights: "Weights", x: np.ndarray, *, head: str = "") -> np.ndarray:
    """Computes a VGG in float64: (S, S, 3) to logits, or without a top to the last feature map.

    `head` is the head's text form, of which only the pooling counts; else the top's inputs tell.
    """
    convs = [layer for layer in weights if "_conv" in layer]
    for layer, after in zip(convs, [*convs[1:], ""], strict=True):
        x = _convolve(x, weights[layer])
        norm = weights.get(layer.replace("conv", "bn"))
        if norm is not None:
            factor = norm["scale"] / np.sqrt(norm["var"].astype(np.float64) + EPSILON)
            x = (x - norm["mean"]) * factor + norm["bias"]
        x = np.maximum(x, 0)
        if not after.startswith(layer.split("_")[0]):
            x = _halve(x).max((1, 3))
    top = [layer for layer in weights if not in_base(layer)]
    if not top:
        return x
    inputs = weights[top[0]]["kernel"].shape[0]
    if head.startswith("avg2"):
        x = _halve(x).mean((1, 3))
    x = x.mean((0, 1)) if inputs == x.shape[-1] else x.ravel()
    for layer in top:
        kernel, bias = weights[layer]["kernel"], weights[layer]["bias"]
        rows = max(1, 2**21 // kernel.shape[1])  # float64 takes twice the room of the kernel
        parts = range(0, len(kernel), rows)
        x = sum(x[at : at + rows] @ kernel[at : at + rows].astype(np.float64) for at in parts)
        x = x + bias
        x = x if layer == top[-1] else np.maximum(x, 0)
    return x


def _halve(x: np.ndarray) -> np.ndarray:
    """Splits (H, W, C) into windows of 2x2, (H/2, 2, W/2, 2, C); odd rests are left out."""
    height, width = x.shape[0] // 2, x.shape[1] // 2
    return x[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1)


def _convolve(x: np.ndarray, params: Mapping[str, np.ndarray]) -> np.ndarray:
    """Convolves (H, W, I) with 3x3 kernels, the border padded with 0: nine products of matrices."""
    kernel = params["kernel"].astype(np.float64)
    height, width, channels = x.shape
    padded = np.zeros((height + 2, width + 2, channels))
    padded[1:-1, 1:-1] = x
    out = np.zeros((height, width, kernel.shape[-1])) + params["bias"]
    for row in range(3):
        for column in range(3):
            out += padded[row : row + height, column : column + width] @ kernel[row, column]
    return out


def print_verdict(verdict: Verdict) -> None:
    """Prints what was found, a line each, to stdout."""
    info, outputs, mode = verdict.info, verdict.outputs, verdict.info.preprocess
    usual = (
        "" if info.states_preprocess else " (as Keras' weights do: the file itself does not say)"
    )
    lines = {
        "File": f"{printable(verdict.path)}, {verdict.path.stat().st_size:,} bytes",
        "Format": info.kind,
        "SHA-256": verdict.digests.sha256,
        "Known as": verdict.digests.known_as or "none of the published files",
        "Network": f"{verdict.network}, {len(verdict.layers)} layers with "
        f"{verdict.parameters:,} numbers",
        "Top": ", ".join(verdict.top) or "none",
        "Type": "; ".join(map(printable, verdict.notes)) or "float32",
        "Values": "finite: 0 NaN, 0 infinite",
        "Pixels": f"--preprocess {mode}: {PIXELS[mode]}; {RANGES[mode]}{usual}",
        "Not unit": f"--preprocess unit would give 0 to 1 where {RANGES[mode]} is expected: it "
        f"runs, and sees nothing that it was trained on",
        "Forward": f"noise of seed {SEED}, {verdict.image_size} px: {outputs.size:,} outputs from "
        f"{outputs.min():.4g} to {outputs.max():.4g}",
        "Digest": f"{verdict.digest} (of these outputs, the same on every machine)",
    }
    if mode == "unit":
        del lines["Not unit"]
    for name in ("source", "source_sha256", "source_format", "source_date", "class_names"):
        if name in info.metadata:
            lines[name.replace("_", " ").capitalize()] = printable(info.metadata[name])
    for name, text in lines.items():
        print(f"{name:<14} {text}")
