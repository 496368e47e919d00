"""Reads and writes this package's own weight files: safetensors, flat names `block1_conv1.kernel`.

Values are float32 as the model holds them (HWIO, (in, out)); the file's metadata is a plain
`dict[str, str]`, kept by conversion. Other packages' names (torchvision's) are not here.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vggjax.errors import WeightsError, shown
from vggjax.weights.hdf5 import MAX_ELEMENTS, to_float32
from vggjax.weights.naming import order

if TYPE_CHECKING:
    from vggjax.models.assign import Weights

MAX_HEADER_BYTES = 2**20
"""The header of VGG19 with batch normalisation takes some 15 kB."""

_PARAMS = {"kernel", "bias", "scale", "mean", "var"}


def read_safetensors(path: Path) -> "Weights":
    """Reads a safetensors file of this package.

    Raises:
        WeightsError: damaged, of other names, or holding what weights cannot be.
    """
    from safetensors import SafetensorError, safe_open

    weights: Weights = {}
    with open(path, "rb") as start:
        header = int.from_bytes(start.read(8), "little")
    if header > MAX_HEADER_BYTES:
        raise WeightsError(
            f"{shown(path)} claims a header of {header:,} bytes; it is damaged or no weight file."
        )
    try:
        with safe_open(path, framework="np") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                layer, _, param = key.rpartition(".")
                if not layer or param not in _PARAMS:
                    raise WeightsError(
                        f"{shown(path)} holds {shown(key)!r}; names are LAYER.PARAM as in "
                        f"block1_conv1.kernel, with PARAM one of {', '.join(sorted(_PARAMS))}."
                    )
                where = f"{shown(path)}: {shown(key)!r}"
                entry = file.get_slice(key)
                if entry.get_dtype() not in ("F16", "F32", "F64"):
                    raise WeightsError(f"{where} holds {entry.get_dtype()}, not F16, F32 or F64.")
                shape = entry.get_shape()
                if not shape or not 0 < np.prod(shape, dtype=float) <= MAX_ELEMENTS:
                    raise WeightsError(f"{where} has shape {tuple(shape)}, as no VGG layer has.")
                array = to_float32(file.get_tensor(key), where)
                weights.setdefault(layer, {})[param] = array
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{shown(path)} is damaged or no safetensors file ({shown(error)}). "
            f"Fetch or write it again."
        ) from None
    if not weights:
        raise WeightsError(f"{shown(path)} is a safetensors file without a single array.")
    return {layer: weights[layer] for layer in sorted(weights, key=order)}


def read_metadata(path: Path) -> dict[str, str]:
    """Gives the metadata of a safetensors file; empty where there is none or it is another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def write_safetensors(path: Path, weights: "Weights", metadata: dict[str, str]) -> None:
    """Writes one array a parameter, `LAYER.PARAM`, and the metadata."""
    from safetensors.numpy import save_file

    arrays = {
        f"{layer}.{param}": np.ascontiguousarray(array)
        for layer, params in weights.items()
        for param, array in params.items()
    }
    save_file(arrays, path, metadata={"format": "vggjax", **metadata})
    _sort_metadata(path)
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)  # the library makes it its owner's alone


def _sort_metadata(path: Path) -> None:
    """Puts the metadata in order in place: the library's order is random, file by file."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))  # the format pads with spaces, too
