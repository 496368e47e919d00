"""Verify a weight file: format, network, numbers, checksum, preprocessing, and what it computes.

The forward pass is plain NumPy in float64 on seeded noise: a slow implementation of VGG that is
independent of models/network.py, and whose result is the same on every machine to the digits that
its digest is computed from.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vggjax.errors import WeightsError, printable
from vggjax.models.arch import ARCHS, EPSILON, Shapes, get_arch
from vggjax.weights.compatibility import check_fits, expected_base, network_of
from vggjax.weights.names import in_base
from vggjax.weights.weight_file import WeightFile

if TYPE_CHECKING:
    from vggjax.models.params import Weights

SEED = 0

FORMULAS = {
    "caffe": "BGR in 0-255 minus (103.939, 116.779, 123.68), not scaled",
    "torch": "(RGB/255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)",
    "unit": "RGB/255",
}
"""What each preprocessing mode computes (data/images/preprocess.py)."""

MISTAKES_PAGE = "https://github.com/vggjax/vggjax/blob/main/docs/mistakes.md"
"""What each mistake with pixels costs, measured."""

RANGES = {"caffe": "-124 to 152", "torch": "-2.1 to 2.6", "unit": "0 to 1"}
"""The range of preprocessed pixels."""


@dataclass(frozen=True)
class Verification:
    """What a verified file holds and computes."""

    file: WeightFile
    network: str
    """The network of the table with this base."""
    image_size: int
    outputs: np.ndarray
    """float64 logits, or without a top the last feature map, of the seeded noise."""

    @property
    def top(self) -> tuple[str, ...]:
        """The dense layers, as in "fc1 25088x4096"; empty without a top."""
        return tuple(
            f"{layer} {'x'.join(map(str, params['kernel']))}"
            for layer, params in self.file.shapes.items()
            if not in_base(layer)
        )

    @property
    def num_parameters(self) -> int:
        """The number of all weights."""
        return sum(
            math.prod(shape) for params in self.file.shapes.values() for shape in params.values()
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the outputs, rounded to five digits of the largest."""
        scale = max(float(np.abs(self.outputs).max()), 1e-30)
        digits = np.round(self.outputs.ravel() / scale * 1e5).astype("<i8")
        return hashlib.sha256(f"{scale:.4e} ".encode() + digits.tobytes()).hexdigest()


def verify_file(
    path: Path, *, model: str | None = None, expect_sha256: str | None = None
) -> Verification:
    """Read a whole file, compare it with the table of networks, and run it once.

    Args:
        path: any readable weight file.
        model: the network that it must hold; None accepts any of the table.
        expect_sha256: the checksum that it must have.

    Raises:
        WeightsError: it cannot be read, is incomplete or not finite, or not what was expected.
        ConfigError: `model` is not in the table.
    """
    if model is not None:
        get_arch(model)
    file = WeightFile(path)
    file.check_sha256(expect_sha256)

    def check(shapes: Shapes) -> None:
        check_network(shapes, model, name=printable(path))

    weights = file.read(check=check)
    metadata = file.info.metadata
    size = _image_size(file.shapes, metadata)
    return Verification(
        file=file,
        network=network_of(file.shapes) or metadata.get("arch", "unknown"),
        image_size=size,
        outputs=forward(weights, seeded_noise(size), head=metadata.get("head", "")),
    )


def check_network(
    shapes: Shapes, model: str | None, *, name: str, any_widths: bool = False
) -> None:
    """Check that the base is that of `model`, or of any network; any dense layers may follow.

    With `any_widths`, each convolution may have another number of channels than the network's.

    Raises:
        WeightsError: layers or parameters are missing, unexpected, or do not fit each other.
    """
    base = {layer: params for layer, params in shapes.items() if in_base(layer)}
    model = model or network_of(shapes) or _nearest(base)
    expected: Shapes = expected_base(model)
    if any_widths:
        expected = _with_widths(expected, base)
    check_fits(base, expected, name=name, model=f"{model} without a top")
    outputs = None
    for layer, params in shapes.items():
        if in_base(layer):
            continue
        kernel, bias = params.get("kernel"), params.get("bias")
        if kernel is None or bias is None or len(kernel) != 2 or bias != kernel[1:]:
            raise WeightsError(
                f"{name}: {printable(layer)} is not a dense layer with its bias: {dict(params)}.",
                code="E_SHAPE",
            )
        if outputs is not None and kernel[0] != outputs:
            raise WeightsError(
                f"{name}: {printable(layer)} has {kernel[0]:,} inputs; the layer before it has "
                f"{outputs:,} outputs.",
                code="E_SHAPE",
            )
        outputs = kernel[1]


def _with_widths(expected: Shapes, base: Shapes) -> Shapes:
    """Return the shapes of a network whose convolutions have the numbers of channels in `base`."""
    width_in, changed = 3, dict(expected)
    for layer in expected:
        if "_conv" not in layer:
            continue
        kernel = base.get(layer, {}).get("kernel") or expected[layer]["kernel"]
        changed[layer] = {"kernel": (3, 3, width_in, kernel[-1]), "bias": kernel[-1:]}
        if (norm := layer.replace("conv", "bn")) in expected:
            changed[norm] = dict.fromkeys(expected[norm], kernel[-1:])
        width_in = kernel[-1]
    return changed


def _nearest(base: Shapes) -> str:
    """Return the network whose layer names differ least from these."""
    names = {model: set(expected_base(model)) for model in ARCHS}
    return min(names, key=lambda model: len(names[model] ^ set(base)))


def _image_size(shapes: Shapes, metadata: Mapping[str, str]) -> int:
    """Return the image size in px that the top expects; 64 if any size fits."""
    top = next((params["kernel"] for k, params in shapes.items() if not in_base(k)), None)
    width = [params["kernel"][3] for layer, params in shapes.items() if "_conv" in layer][-1]
    if top is None or top[0] == width:
        return 64
    side = math.isqrt(top[0] // width)
    return 32 * side * (2 if metadata.get("head", "").startswith("avg2") else 1)


def seeded_noise(size: int) -> np.ndarray:
    """Return standard normal noise, float64 (size, size, 3), the same on every machine."""
    return np.random.default_rng(SEED).standard_normal((size, size, 3))


def forward(weights: "Weights", x: np.ndarray, *, head: str = "") -> np.ndarray:
    """Compute a VGG in float64: (S, S, 3) to logits, or without a top to the last feature map.

    Of `head`, the head's text form, only `avg2` pooling matters; otherwise the top's inputs decide.
    """
    convs = [layer for layer in weights if "_conv" in layer]
    for layer, following in zip(convs, [*convs[1:], ""], strict=True):
        x = _convolve(x, weights[layer])
        norm = weights.get(layer.replace("conv", "bn"))
        if norm is not None:
            factor = norm["scale"] / np.sqrt(norm["var"].astype(np.float64) + EPSILON)
            x = (x - norm["mean"]) * factor + norm["bias"]
        x = np.maximum(x, 0)
        if not following.startswith(layer.split("_")[0]):
            x = _windows(x).max((1, 3))
    top = [layer for layer in weights if not in_base(layer)]
    if not top:
        return x
    inputs = weights[top[0]]["kernel"].shape[0]
    if head.startswith("avg2"):
        x = _windows(x).mean((1, 3))
    x = x.mean((0, 1)) if inputs == x.shape[-1] else x.ravel()
    for layer in top:
        kernel = weights[layer]["kernel"]
        rows = max(1, 2**21 // kernel.shape[1])  # a float64 copy would double a large kernel
        parts = [slice(start, start + rows) for start in range(0, len(kernel), rows)]
        outputs = sum(x[part] @ kernel[part].astype(np.float64) for part in parts)
        outputs = outputs + weights[layer]["bias"]
        x = outputs if layer == top[-1] else np.maximum(outputs, 0)
    return x


def _windows(x: np.ndarray) -> np.ndarray:
    """Split (H, W, C) into 2x2 windows, (H/2, 2, W/2, 2, C), dropping an odd last row or column."""
    height, width = x.shape[0] // 2, x.shape[1] // 2
    return x[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1)


def _convolve(x: np.ndarray, params: Mapping[str, np.ndarray]) -> np.ndarray:
    """Convolve (H, W, I) with 3x3 kernels and zero padding: nine matrix products."""
    kernel = params["kernel"].astype(np.float64)
    height, width, channels = x.shape
    padded = np.zeros((height + 2, width + 2, channels))
    padded[1:-1, 1:-1] = x
    out = np.zeros((height, width, kernel.shape[-1])) + params["bias"]
    for row in range(3):
        for column in range(3):
            out += padded[row : row + height, column : column + width] @ kernel[row, column]
    return out


def print_verification(verification: Verification) -> None:
    """Print what was verified, a line for each fact, to stdout."""
    file, outputs = verification.file, verification.outputs
    mode, doubt = file.info.preprocess, file.info.preprocess_doubt
    default = "" if file.info.states_preprocess else " (Keras' default; the file does not say)"
    lines = {
        "File": f"{printable(file.path)}, {file.path.stat().st_size:,} bytes",
        "Format": file.info.kind,
        "SHA-256": file.digests.sha256,
        "Known as": file.known_as or "none of the published files",
        "Network": f"{verification.network}, {len(file.shapes)} layers with "
        f"{verification.num_parameters:,} parameters",
        "Top": ", ".join(verification.top) or "none",
        "Arrays": "; ".join(map(printable, file.notes)) or "float32",
        "Values": "finite: 0 NaN, 0 infinite",
        "Preprocess": f"{mode}: {FORMULAS[mode]}; {RANGES[mode]}{default}",
        "Not unit": f"the weights run on pixels in 0 to 1 as well, but were trained on "
        f"{RANGES[mode]}: predictions would be meaningless",
        "Forward": f"noise of seed {SEED}, {verification.image_size} px: {outputs.size:,} outputs "
        f"from {outputs.min():.4g} to {outputs.max():.4g}",
        "Digest": f"{verification.digest} (of these outputs, the same on every machine)",
    }
    if mode == "unit" or doubt:
        del lines["Not unit"]
    if doubt:
        readings = "; ".join(f"as {name} {formula}" for name, formula in FORMULAS.items())
        lines["Preprocess"] = (
            f"unsure: {printable(doubt)}. Set it when you train: {readings}. What wrong pixels "
            f"cost: {MISTAKES_PAGE}"
        )
    for name in ("source", "source_sha256", "source_format", "source_date", "class_names"):
        if name in file.info.metadata:
            lines[name.replace("_", " ").capitalize()] = printable(file.info.metadata[name])
    for name, text in lines.items():
        print(f"{name:<14} {text}")
