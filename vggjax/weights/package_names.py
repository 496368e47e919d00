"""Reads and writes this package's own weight files: safetensors, flat names `block1_conv1.kernel`.

Values are float32 as the model holds them (HWIO, (in, out)); the file's metadata is a plain
`dict[str, str]`, kept by conversion. Other packages' names (torchvision's) are in torchvision.py.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from vggjax.errors import WeightsError, printable
from vggjax.weights.compatibility import Check
from vggjax.weights.layout import read_plain
from vggjax.weights.names import order
from vggjax.weights.safetensors import (
    Tensor,
    TensorToWrite,
    check_weights,
    is_safetensors,
    read_header,
    write_tensors,
)

if TYPE_CHECKING:
    from vggjax.models.params import Weights

_PARAMS = ("kernel", "scale", "bias", "mean", "var")


def is_native(tensors: dict[str, Tensor]) -> bool:
    """Whether any of the names could be this package's."""
    return any(key.rpartition(".")[2] in (*_PARAMS[:2], "mean", "var") for key in tensors)


def read_native(
    tensors: dict[str, Tensor],
    *,
    name: str,
    check: Check | None = None,
    notes: list[str] | None = None,
) -> "Weights":
    """Reads the tensors of an open file of this package.

    Raises:
        WeightsError: other names, or arrays that weights cannot be.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, _, param = key.rpartition(".")
        if not layer or param not in _PARAMS:
            raise WeightsError(
                f"{name} holds {printable(key)!r}; names are LAYER.PARAM as in block1_conv1.kernel, "
                f"with PARAM one of {', '.join(_PARAMS)}.",
                code="E_NAME",
            )
        found.setdefault(layer, {})[param] = tensor
    check_weights(tensors.values(), notes=notes)
    found = {layer: found[layer] for layer in sorted(found, key=order)}
    if check is not None:
        check({k: {n: t.shape for n, t in params.items()} for k, params in found.items()})
    return {
        layer: {param: read_plain(tensor) for param, tensor in params.items()}
        for layer, params in found.items()
    }


def read_metadata(path: Path) -> dict[str, str]:
    """Gives the metadata of a safetensors file; empty where there is none or it is another kind."""
    try:
        if not path.is_file():
            return {}
        with open(path, "rb") as file:
            if not is_safetensors(file.read(16)):
                return {}
            return read_header(file, name=printable(path))[1]
    except (OSError, WeightsError):
        return {}


def write_native(path: Path, weights: "Weights", metadata: dict[str, str]) -> None:
    """Writes one array a parameter, `LAYER.PARAM`, and the metadata."""
    written = [
        TensorToWrite(f"{layer}.{param}", array.shape, lambda array=array: [array])
        for layer, params in weights.items()
        for param, array in params.items()
    ]
    write_tensors(path, written, {"format": "vggjax", **metadata})
