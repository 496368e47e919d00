"""The two doors of this room: `read_weights` goes by a file's content, `write_weights` by ending.

Both speak `{layer: {"kernel": ndarray, "bias": ndarray}}`, float32, Keras' layer names, kernels
HWIO and (in, out). A file is written beside its place and moved there whole, or not at all.
"""

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vggjax.errors import WeightsError, shown
from vggjax.weights.keras import read_keras_h5, read_keras_zip
from vggjax.weights.keras_write import write_legacy_h5, write_weights_h5
from vggjax.weights.native import read_safetensors, write_safetensors

if TYPE_CHECKING:
    from vggjax.models.assign import Weights

READABLE = "Keras' .h5 (published layout or whole model), .weights.h5 and .keras, and .safetensors"
WRITABLE = (".safetensors", ".weights.h5", ".h5")
"""Endings that `write_weights` takes; plain `.h5` is the layout of the published files."""

PARAMS = ("kernel", "scale", "bias", "mean", "var")
"""Parameters' names, in the order in which they are given."""


def read_weights(path: str | os.PathLike) -> "Weights":
    """Reads a weight file of any known kind, whatever its ending says.

    Allocates as much as the file is long. float16 and float64 become float32.

    Raises:
        WeightsError: no such file, not a weight file, damaged, or holding NaN or infinity.
    """
    path = Path(path)
    name = shown(path)
    if path.is_dir():
        raise WeightsError(f"{name} is a folder; a weight file is wanted: {READABLE}.")
    if not path.exists():
        raise WeightsError(f"There is no file {name}.")
    if not path.is_file():
        raise WeightsError(f"{name} is no regular file; a weight file is wanted: {READABLE}.")
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise WeightsError(f"{name} cannot be read: {error.strerror}.") from None
    if not start:
        raise WeightsError(f"{name} is empty. Fetch or write it again.")
    weights = _reader(path, start)(path)
    return {
        layer: {param: params[param] for param in PARAMS if param in params}
        for layer, params in weights.items()
    }


def _reader(path: Path, start: bytes) -> Callable[[Path], "Weights"]:
    import h5py

    if start.startswith(b"PK\x03\x04") or zipfile.is_zipfile(path):
        return read_keras_zip
    if start.startswith(b"\x89HDF") or h5py.is_hdf5(path):
        return read_keras_h5
    if start[8:9] == b"{":  # safetensors: 8 bytes of length, then JSON
        return read_safetensors
    kind = "not a weight file"
    if b"git-lfs" in start:
        kind = "a Git LFS pointer and not the file itself"
    elif b"<html" in start.lower() or b"<!doctype" in start.lower():
        kind = "a web page, perhaps of a failed download, and not a weight file"
    raise WeightsError(f"{shown(path)} is {kind}. Readable are {READABLE}.")


def check_destination(path: str | os.PathLike) -> str:
    """Gives the one of `WRITABLE` that the path ends in, once it can be written to.

    Raises:
        WeightsError: an unknown ending, a folder, or a folder that is not there.
    """
    path = Path(path)
    name = path.name.lower()
    ending = next((ending for ending in WRITABLE if name.endswith(ending)), None)
    if ending is None or name == ending:
        raise WeightsError(
            f"The ending says what is written, and {shown(path.name)!r} has none of "
            f"{', '.join(WRITABLE)}."
        )
    if path.is_dir():
        raise WeightsError(f"{shown(path)} is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise WeightsError(f"There is no folder {shown(path.parent)}. Make it first.")
    return ending


def write_weights(
    path: str | os.PathLike,
    weights: Mapping[str, Mapping[str, np.ndarray]],
    *,
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes the weights in the layout that the path's ending names (`WRITABLE`).

    `metadata` is kept by safetensors alone. A file that was there is replaced once the new one
    is complete.

    Raises:
        WeightsError: an unknown ending, nowhere to write, or arrays that are no weights.
    """
    path, ending = Path(path), check_destination(path)
    checked = _checked(weights)
    # Hidden and of this process alone, so that two runs do not write into each other's.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if ending == ".safetensors":
            write_safetensors(part, checked, metadata or {})
        else:
            (write_weights_h5 if ending == ".weights.h5" else write_legacy_h5)(part, checked)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise WeightsError(
            f"{shown(path)} cannot be written: {error.strerror or shown(error)}."
        ) from None
    finally:
        part.unlink(missing_ok=True)


def _checked(weights: Mapping[str, Mapping[str, np.ndarray]]) -> "Weights":
    checked: Weights = {}
    for layer, params in weights.items():
        if not layer or "/" in layer or "." in layer or not layer.isprintable():
            raise WeightsError(f"A layer cannot be called {shown(layer)!r} in a weight file.")
        for param, array in params.items():
            if param not in PARAMS:
                raise WeightsError(
                    f"The layer {layer!r} has a parameter {shown(param)!r}; written are "
                    f"{', '.join(PARAMS)}."
                )
            checked.setdefault(layer, {})[param] = np.ascontiguousarray(array, np.float32)
    if not checked:
        raise WeightsError("There are no weights to write.")
    return checked
