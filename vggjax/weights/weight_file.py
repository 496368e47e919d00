"""The two doors of this room: `read_weights` goes by a file's content, `write_weights` by ending.

Both speak `{layer: {"kernel": ndarray, "bias": ndarray}}`, float32, Keras' layer names, kernels
HWIO and (in, out). A file is written beside its place and moved there whole, or not at all. Where
an ending stands for several layouts, `layout` says which: `.safetensors` is this package's unless
told otherwise, `.pth` torchvision's.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from vggjax.atomic import atomic_write
from vggjax.errors import WeightsError, printable
from vggjax.weights.archive import open_archive
from vggjax.weights.compatibility import Check
from vggjax.weights.keras.archive import write_keras
from vggjax.weights.keras.read import (
    is_hdf5,
    read_keras_facts,
    read_keras_h5,
    read_keras_zip,
)
from vggjax.weights.keras.write import write_legacy_h5, write_weights_h5
from vggjax.weights.package_names import is_native, read_native, write_native
from vggjax.weights.safetensors import Tensor, is_safetensors, read_header, write_tensors
from vggjax.weights.tensor_spans import open_regular
from vggjax.weights.torch.state_dict_file import (
    is_pickle,
    is_torch_archive,
    load_tensors,
    need_torch,
    write_torch_file,
)
from vggjax.weights.torch.torchvision import is_torch, read_torch, style_of
from vggjax.weights.torch.torchvision_write import torch_tensors

if TYPE_CHECKING:
    from vggjax.models.params import Weights

READABLE = (
    "Keras' .h5 (published layout or whole model), .weights.h5 and .keras, .safetensors of this "
    "package, torchvision or timm, and PyTorch's .pth"
)

LAYOUTS = {
    ".safetensors": ("vggjax", "torchvision", "timm"),
    ".weights.h5": (),
    ".h5": (),
    ".keras": (),
    ".pth": ("torchvision", "timm"),
    ".pt": ("torchvision", "timm"),
}
"""Endings that `write_weights` takes, and the layouts that each can stand for, its own first.
Plain `.h5` is the layout of the published files."""

WRITABLE = tuple(LAYOUTS)

PIXELS = ("caffe", "torch", "unit")
"""Ways in which pixels are prepared (data/preprocess.py)."""

PARAMS = ("kernel", "scale", "bias", "mean", "var")
"""Parameters' names, in the order in which they are given."""


@dataclass(frozen=True)
class Facts:
    """What a file says of itself, beside its numbers."""

    kind: str
    """The layout, in words."""
    metadata: dict[str, str] = field(default_factory=dict)
    """What this package noted when it wrote the file; empty for others' files."""
    pixels: str = "caffe"
    """The preprocessing that weights of this kind expect where the metadata says nothing."""

    @property
    def preprocess(self) -> str:
        """The preprocessing of pixels that these weights expect: caffe, torch or unit."""
        noted = self.metadata.get("preprocess")
        return noted if noted in PIXELS else self.pixels

    @property
    def tells_pixels(self) -> bool:
        """Whether the file itself says so, by a note or by whose names it bears."""
        return self.metadata.get("preprocess") in PIXELS or self.pixels != Facts.pixels


def read_weights(
    path: str | os.PathLike, *, check: Check | None = None, notes: list[str] | None = None
) -> "Weights":
    """Reads a weight file of any known kind, whatever its ending says.

    Allocates as much as the file is long. float16 and float64 become float32.

    Args:
        path: the file.
        check: is given `{layer: {parameter: shape}}` before any number is read, and may refuse.
        notes: is added a line for each kind of number that was cast.

    Raises:
        WeightsError: no such file, not a weight file, damaged, or holding NaN or infinity.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "h5":
        weights = read_keras_h5(path, check=check, notes=notes)
    elif kind == "keras":
        weights = read_keras_zip(path, check=check, notes=notes)
    else:
        with _open_tensors(path, kind) as (tensors, _):
            read = read_native if is_native(tensors) else read_torch
            weights = read(tensors, name=printable(path), check=check, notes=notes)
    return {
        layer: {param: params[param] for param in PARAMS if param in params}
        for layer, params in weights.items()
    }


def read_facts(path: str | os.PathLike) -> Facts:
    """Says what kind of file it is and what is noted in it; no weight is read.

    Raises:
        WeightsError: as `read_weights`, but for what only the numbers show.
    """
    path = Path(path)
    kind = _kind(path)
    if kind in ("h5", "keras"):
        facts = read_keras_facts(path, kind="h5" if kind == "h5" else "zip")
        return Facts(f"Keras, {facts.pop('layout', kind)}", facts)
    with _open_tensors(path, kind) as (tensors, metadata):
        metadata = {key: value for key, value in metadata.items() if key != "format"}
        if is_native(tensors):
            return Facts("vggjax safetensors", metadata)
        ending = "safetensors" if kind == "safetensors" else "state dict (.pth)"
        return Facts(f"{style_of(tensors)} {ending}", metadata, "torch")


Kind = Literal["h5", "keras", "safetensors", "torch"]


def _kind(path: Path) -> Kind:
    """Looks at a file's first bytes, and at an archive's members."""
    name = printable(path)
    if path.is_dir():
        raise WeightsError(
            f"{name} is a folder; a weight file is wanted: {READABLE}.", code="E_FILE"
        )
    with open_regular(path) as file:
        start = file.read(512)
        if not start:
            raise WeightsError(f"{name} is empty. Fetch or write it again.", code="E_TRUNCATED")
        if start.startswith(b"PK\x03\x04"):
            with _named(name), open_archive(file) as archive:
                return "torch" if is_torch_archive(archive.namelist()) else "keras"
        if is_safetensors(start):  # its length may look like a pickle's first bytes
            return "safetensors"
        if is_pickle(start):
            return "torch"
    if is_hdf5(path):
        return "h5"
    what = "not a weight file"
    if b"git-lfs" in start:
        what = "a Git LFS pointer and not the file itself"
    elif b"<html" in start.lower() or b"<!doctype" in start.lower():
        what = "a web page, perhaps of a failed download, and not a weight file"
    raise WeightsError(f"{name} is {what}. Readable are {READABLE}.", code="E_FORMAT")


@contextlib.contextmanager
def _open_tensors(path: Path, kind: Kind) -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
    """Opens a file of named tensors: (tensors, metadata)."""
    name = printable(path)
    with open_regular(path) as file, _named(name):
        if kind == "safetensors":
            tensors, metadata = read_header(file, name=name)
        else:
            tensors, metadata = load_tensors(file, path, name=name)
        if not tensors:
            raise WeightsError(f"{name} has not a single array in it.", code="E_MISSING")
        if not is_native(tensors) and not is_torch(tensors):
            raise WeightsError(
                f"{name} holds {printable(next(iter(tensors)))!r}, a name of no VGG that is known; "
                f"known are this package's (block1_conv1.kernel), torchvision's "
                f"(features.0.weight) and timm's.",
                code="E_NAME",
            )
        yield tensors, metadata


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Puts the file's name before every refusal that lacks it."""
    try:
        yield
    except WeightsError as error:
        if name in str(error):
            raise
        raise WeightsError(f"{name}: {error}", code=error.code) from None


def check_destination(path: str | os.PathLike, layout: str | None = None) -> tuple[str, str | None]:
    """Gives the one of `WRITABLE` that the path ends in, and the layout, once it can be written to.

    Raises:
        WeightsError: an unknown ending, one that the layout does not have, a folder, or a folder
            that is not there.
    """
    path = Path(path)
    name = path.name.lower()
    ending = next((ending for ending in WRITABLE if name.endswith(ending)), None)
    if ending is None or name == ending:
        raise WeightsError(
            f"The ending says what is written, and {printable(path.name)!r} has none of "
            f"{', '.join(WRITABLE)}.",
            code="E_WRITE",
        )
    layouts = LAYOUTS[ending]
    if layout is not None and layout not in layouts:
        endings = [other for other, have in LAYOUTS.items() if layout in have]
        fix = f"it goes with {', '.join(endings)}" if endings else "the ending alone says it"
        raise WeightsError(
            f"{ending} is not written as {printable(layout)!r}: {fix}. Choices for {ending}: "
            f"{', '.join(layouts) or 'none'}.",
            code="E_WRITE",
        )
    if path.is_dir():
        raise WeightsError(f"{printable(path)} is a folder; name a file in it.", code="E_WRITE")
    if not path.parent.is_dir():
        raise WeightsError(
            f"There is no folder {printable(path.parent)}. Make it first.", code="E_WRITE"
        )
    if ending in (".pth", ".pt"):
        need_torch(printable(path.name))
    return ending, layout or next(iter(layouts), None)


def write_weights(
    path: str | os.PathLike,
    weights: Mapping[str, Mapping[str, np.ndarray]],
    *,
    metadata: dict[str, str] | None = None,
    layout: str | None = None,
) -> None:
    """Writes the weights in the layout that the path's ending names.

    A file that was there is replaced once the new one is complete. `metadata` is kept by every
    layout, where its own library passes over it.

    Raises:
        WeightsError: an unknown ending, nowhere to write, or arrays that are no weights or that
            the layout cannot hold.
    """
    path, (ending, layout) = Path(path), check_destination(path, layout)
    checked, metadata = _checked(weights), metadata or {}
    with atomic_write(path) as part:
        if layout is None:
            WRITERS[ending](part, checked, metadata)
        elif layout == "vggjax":
            write_native(part, checked, metadata)
        elif ending == ".safetensors":
            write_tensors(part, torch_tensors(checked, layout), {"format": "pt", **metadata})
        else:
            write_torch_file(part, torch_tensors(checked, layout), metadata)


WRITERS = {".h5": write_legacy_h5, ".weights.h5": write_weights_h5, ".keras": write_keras}
"""Of Keras' endings."""


def _checked(weights: Mapping[str, Mapping[str, np.ndarray]]) -> "Weights":
    checked: Weights = {}
    for layer, params in weights.items():
        if not layer or "/" in layer or "." in layer or not layer.isprintable():
            raise WeightsError(
                f"A layer cannot be called {printable(layer)!r} in a weight file.", code="E_NAME"
            )
        for param, array in params.items():
            if param not in PARAMS:
                raise WeightsError(
                    f"The layer {layer!r} has a parameter {printable(param)!r}; written are "
                    f"{', '.join(PARAMS)}.",
                    code="E_NAME",
                )
            checked.setdefault(layer, {})[param] = np.ascontiguousarray(array, np.float32)
    if not checked:
        raise WeightsError("There are no weights to write.", code="E_MISSING")
    return checked
