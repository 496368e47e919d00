"""The two doors of this room: `read_weights` goes by a file's content, `write_weights` by ending.

Both speak `{layer: {"kernel": ndarray, "bias": ndarray}}`, float32, Keras' layer names, kernels
HWIO and (in, out). A file is written beside its place and moved there whole, or not at all. Where
an ending stands for several layouts, `layout` says which: `.safetensors` is this package's unless
told otherwise, `.pth` torchvision's.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from vggjax.atomic import atomic_write
from vggjax.errors import WeightsError, printable
from vggjax.weights.archive import open_archive
from vggjax.weights.compatibility import Check, Shapes
from vggjax.weights.digests import Digests, file_digests
from vggjax.weights.keras.read import KerasFile, is_hdf5, parse_keras
from vggjax.weights.keras.write import write_keras, write_legacy_h5, write_weights_h5
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
class FileInfo:
    """What a weight file states about itself besides its numbers."""

    kind: str
    """The format, for display, as in "Keras, legacy" or "torchvision safetensors"."""
    metadata: dict[str, str] = field(default_factory=dict)
    """What this package noted when it wrote the file; empty for other files."""
    pixels: str = "caffe"
    """The preprocessing that weights of this kind expect unless the metadata says otherwise."""

    @property
    def preprocess(self) -> str:
        """The preprocessing that these weights expect: caffe, torch or unit."""
        stated = self.metadata.get("preprocess")
        return stated if stated in PIXELS else self.pixels

    @property
    def states_preprocess(self) -> bool:
        """Whether the file itself determines its preprocessing, by metadata or by its names."""
        return self.metadata.get("preprocess") in PIXELS or self.pixels != FileInfo.pixels


class WeightFile:
    """A weight file, opened once.

    Every property is computed when it is first asked for, and then kept: a file is parsed once and
    hashed once, however many functions need it. No file stays open.

    Raises:
        WeightsError: there is no such file, or it is not a regular one; the properties and `read`
            raise it for a file that is not a weight file, is damaged, or was changed meanwhile.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._identity = self._current_identity()

    def __repr__(self) -> str:
        return f"WeightFile({printable(self.path)!r})"

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: no file stays open between calls."""

    @functools.cached_property
    def digests(self) -> Digests:
        """The file's checksums, from one pass over it."""
        self._check_unchanged()
        return file_digests(self.path)

    @functools.cached_property
    def info(self) -> FileInfo:
        """What the file states about itself; no weight is read."""
        if self._kind in ("h5", "keras"):
            return FileInfo(f"Keras, {self._keras.layout}", self._keras.metadata)
        with self._tensors() as (tensors, metadata):
            metadata = {key: value for key, value in metadata.items() if key != "format"}
            if is_native(tensors):
                return FileInfo("vggjax safetensors", metadata)
            ending = "safetensors" if self._kind == "safetensors" else "state dict (.pth)"
            return FileInfo(f"{style_of(tensors)} {ending}", metadata, "torch")

    @functools.cached_property
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Each parameter's shape, `{layer: {parameter: shape}}`; no weight is read."""
        if self._kind in ("h5", "keras"):
            return self._keras.shapes
        shapes: dict[str, dict[str, tuple[int, ...]]] = {}

        def keep(received: Shapes) -> None:
            shapes.update({layer: dict(params) for layer, params in received.items()})
            raise StopIteration

        with contextlib.suppress(StopIteration):
            self._read_tensors(check=keep, notes=None)
        return shapes

    @property
    def provenance(self) -> dict[str, str]:
        """Where the weights come from, for a run's `model.json`."""
        provenance = {"weights_sha256": self.digests.sha256, "weights_format": self.info.kind}
        if self.digests.known_as:
            provenance["weights_known_as"] = self.digests.known_as
        kept = ("source", "source_sha256", "source_format", "source_date")
        metadata = self.info.metadata
        return provenance | {f"weights_{key}": metadata[key] for key in kept if key in metadata}

    def read(self, *, check: Check | None = None, notes: list[str] | None = None) -> "Weights":
        """Read all weights as float32.

        Allocates as much as the file is long. float16 and float64 become float32.

        Args:
            check: called with `shapes` before any number is read; may raise to refuse the file.
            notes: extended by a line for each type of number that was cast or array left out.

        Raises:
            WeightsError: not a weight file, damaged, or holding NaN or infinity.
        """
        self._check_unchanged()
        if check is not None:
            with _named(printable(self.path)):
                check(self.shapes)
        if self._kind in ("h5", "keras"):
            weights = self._keras.read()
            if notes is not None:
                notes += self._keras.notes
        else:
            weights = self._read_tensors(check=None, notes=notes)
        return {
            layer: {param: params[param] for param in PARAMS if param in params}
            for layer, params in weights.items()
        }

    @functools.cached_property
    def _kind(self) -> "Kind":
        return _kind(self.path)

    @functools.cached_property
    def _keras(self) -> KerasFile:
        return parse_keras(self.path, "h5" if self._kind == "h5" else "zip")

    def _tensors(self):
        return _open_tensors(self.path, self._kind)

    def _read_tensors(self, *, check: Check | None, notes: list[str] | None) -> "Weights":
        with self._tensors() as (tensors, _):
            read = read_native if is_native(tensors) else read_torch
            return read(tensors, name=printable(self.path), check=check, notes=notes)

    def _current_identity(self) -> tuple[int, ...]:
        with open_regular(self.path) as file:
            status = os.fstat(file.fileno())
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def _check_unchanged(self) -> None:
        if self._current_identity() != self._identity:
            raise WeightsError(
                f"{printable(self.path)} was changed after it had been opened. Start again.",
                code="E_FILE",
            )


def read_weights(
    path: str | os.PathLike, *, check: Check | None = None, notes: list[str] | None = None
) -> "Weights":
    """Read a weight file of any known kind, whatever its ending.

    See `WeightFile.read`.

    Raises:
        WeightsError: no such file, not a weight file, damaged, or holding NaN or infinity.
    """
    return WeightFile(path).read(check=check, notes=notes)


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
    try:
        with atomic_write(path, sync=True) as part:
            if layout is None:
                WRITERS[ending](part, checked, metadata)
            elif layout == "vggjax":
                write_native(part, checked, metadata)
            elif ending == ".safetensors":
                write_tensors(part, torch_tensors(checked, layout), {"format": "pt", **metadata})
            else:
                write_torch_file(part, torch_tensors(checked, layout), metadata)
    except OSError as error:
        raise WeightsError(
            f"{printable(path)} cannot be written: {error.strerror or printable(error)}.",
            code="E_WRITE",
        ) from None


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
