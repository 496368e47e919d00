"""Weight files of every format: read by content, written by file ending.

Weights are `{layer: {"kernel": ndarray, "bias": ndarray}}`, float32, with Keras' layer names and
kernels HWIO or (in, out). `WeightFile` is a file that is opened once; `read_weights` and
`write_weights` are the public functions. Where an ending stands for several layouts, `layout`
chooses: by default `.safetensors` has this package's names and `.pth` torchvision's.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from vggjax.atomic import atomic_write
from vggjax.errors import WeightsError, join_names, printable
from vggjax.weights.archive import open_archive
from vggjax.weights.arrays.naming import plan_arrays
from vggjax.weights.arrays.npz import is_npz, read_npz
from vggjax.weights.arrays.numpy_pickle import read_pickle
from vggjax.weights.arrays.onnx import is_onnx, parse_onnx
from vggjax.weights.compatibility import Check, network_of
from vggjax.weights.digests import (
    CAFFE_IN_TORCH,
    PUBLISHED_BASES,
    Digests,
    PublishedBase,
    base_digest,
    expected_sha256,
    file_digests,
)
from vggjax.weights.foreign import refuse_foreign, refuse_foreign_path, refuse_zip
from vggjax.weights.hdf5.unpack import signature_start
from vggjax.weights.keras.read import parse_keras
from vggjax.weights.keras.write import write_keras, write_legacy_h5, write_weights_h5
from vggjax.weights.layout import AS_IS, TensorToWrite
from vggjax.weights.names import PARAMS, group_by_layer, has_package_names, in_base, in_table_order
from vggjax.weights.parsed_file import PREPROCESS_MODES, FileInfo, ParsedFile, Plan
from vggjax.weights.safetensors import is_safetensors, read_header, write_tensors
from vggjax.weights.tensor_spans import Span, check_span, check_spans, open_regular
from vggjax.weights.torch.state_dict_file import (
    is_pickle,
    is_torch_archive,
    is_torch_pickle,
    read_state_dict,
    require_torch,
    write_state_dict,
)
from vggjax.weights.torch.torchvision import find_in_order, find_layers, to_torch

if TYPE_CHECKING:
    from vggjax.models.params import Weights

READABLE = (
    "Keras' .h5 (published layout or whole model), .weights.h5 and .keras, .safetensors of this "
    "package, torchvision or timm, PyTorch's .pth, ONNX, and NumPy's .npz or a pickle of its arrays"
)

LAYOUTS = {
    ".safetensors": ("vggjax", "torchvision", "timm"),
    ".weights.h5": (),
    ".h5": (),
    ".keras": (),
    ".pth": ("torchvision", "timm"),
    ".pt": ("torchvision", "timm"),
}
"""Endings that `write_weights` accepts, and the layouts that each can stand for, the default first.
Plain `.h5` is the layout of the published files."""

WRITABLE = tuple(LAYOUTS)

_KERAS_WRITERS = {".h5": write_legacy_h5, ".weights.h5": write_weights_h5, ".keras": write_keras}
_ENDINGS = {
    "safetensors": "safetensors",
    "torch": "state dict (.pth)",
    "npz": "NumPy arrays (.npz)",
    "pickle": "pickle of NumPy arrays",
}
_NAMES_DOUBT = (
    "its names do not show on which pixels the weights were trained; Caffe's VGG expects caffe, "
    "torchvision's torch"
)
_OTHER_WAY_OUT = ("E_FILE", "E_FOREIGN", "E_CODE", "E_ORDER", "E_NAME", "E_ARCH")
"""Codes of refusals that another copy of the file does not help against."""


Kind = Literal["h5", "keras", "onnx", "safetensors", "torch", "npz", "pickle"]


class WeightFile:
    """A weight file, opened once.

    Every property is computed when it is first asked for, and then kept: a file is parsed once and
    hashed once, however many functions need it. No file stays open; `read` and the end of a `with`
    block release the memory that parsing holds, and a later `read` parses again.

    Raises:
        WeightsError: there is no such file, or it is not a regular one; the properties and `read`
            raise it for a file that is not a weight file, is damaged, or was changed meanwhile.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        refuse_foreign_path(self.path)
        self._identity = self._current_identity()

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    @functools.cached_property
    def digests(self) -> Digests:
        """The file's checksums, from one pass over it."""
        self._check_unchanged()
        return file_digests(self.path)

    @functools.cached_property
    def info(self) -> FileInfo:
        """What the file states about itself, or what a published base that it holds expects."""
        info = self._parsed.info
        if info.metadata.get("preprocess") in PREPROCESS_MODES or info.determined == "unit":
            return info
        if self.published_base is not None:
            return dataclasses.replace(info, determined=self.published_base.preprocess)
        if info.preprocess_doubt and self.digests.sha256[:8] in CAFFE_IN_TORCH:
            return dataclasses.replace(info, determined="caffe")
        return info

    @functools.cached_property
    def published_base(self) -> PublishedBase | None:
        """The published base with the file's numbers, which are read if the shapes are its own."""
        if network_of(self.shapes) not in {base.arch for base in PUBLISHED_BASES.values()}:
            return None
        self._check_unchanged()
        with _named(self.path):
            base = self._parsed.read(self.path, layers=set(filter(in_base, self.shapes)))
        return PUBLISHED_BASES.get(base_digest(base))

    @property
    def known_as(self) -> str | None:
        """The published file with these checksums, or the published base with these numbers."""
        base = self.published_base
        return self.digests.known_as or (None if base is None else str(base))

    @functools.cached_property
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Each parameter's shape, `{layer: {parameter: shape}}`; no weight is read."""
        return self._parsed.shapes

    @functools.cached_property
    def notes(self) -> list[str]:
        """A line for each stored type that is cast to float32, and for arrays that are left out."""
        is_rgb = self.published_base is not None and self.published_base.is_rgb
        return self._parsed.notes + is_rgb * [
            "the input channels of block1_conv1 became BGR, as in Keras' file"
        ]

    @property
    def provenance(self) -> dict[str, str]:
        """Where the weights come from, for a run's `model.json`."""
        provenance = {"weights_sha256": self.digests.sha256, "weights_format": self.info.kind}
        if self.known_as:
            provenance["weights_known_as"] = self.known_as
        kept = ("source", "source_sha256", "source_format", "source_date")
        metadata = self.info.metadata
        return provenance | {f"weights_{key}": metadata[key] for key in kept if key in metadata}

    def check_sha256(self, expected: str | None) -> None:
        """Refuse the file if `expected` is given and is not its SHA-256.

        Raises:
            WeightsError: they differ, or `expected` is not a SHA-256.
        """
        if expected is None:
            return
        if self.digests.sha256 != (wanted := expected_sha256(expected)):
            raise WeightsError(
                f"{printable(self.path)} has the SHA-256 {self.digests.sha256}; expected {wanted}. "
                f"It is another file or was changed. Download it again, or leave out "
                f"`expect_sha256` if you trust it.",
                code="E_DIGEST",
            )
        if others := self._parsed.numbers_beside:
            raise WeightsError(
                f"{printable(self.path)} has the expected SHA-256, but its numbers are in "
                f"{join_names(printable(other.name) for other in others)}, which no checksum "
                f"covers. Convert it first, and check the new file's.",
                code="E_DIGEST",
            )

    def read(self, *, check: Check | None = None) -> "Weights":
        """Read all weights as float32.

        Allocates as much as the file is long. float16 and float64 become float32.

        Args:
            check: called with `shapes` before any number is read; may raise to refuse the file.

        Raises:
            WeightsError: not a weight file, damaged, or holding NaN or infinity.
        """
        with _named(self.path):
            if check is not None:
                check(self.shapes)
            self._check_unchanged()
            weights = self._parsed.read(self.path)
            _ = self.info, self.shapes, self.notes  # keep them
        if self.published_base is not None and self.published_base.is_rgb:
            kernel = weights["block1_conv1"]["kernel"]
            weights["block1_conv1"]["kernel"] = np.ascontiguousarray(kernel[:, :, ::-1])
        self._release()
        return weights

    @functools.cached_property
    def _parsed(self) -> ParsedFile:
        self._check_unchanged()
        with _named(self.path):
            kind = _kind(self.path)
            if kind == "h5" or kind == "keras":
                return parse_keras(self.path, kind)
            return parse_onnx(self.path) if kind == "onnx" else _parse_tensors(self.path, kind)

    def _release(self) -> None:
        self.__dict__.pop("_parsed", None)  # a state dict from before 2020 is all in memory

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
    """Read a weight file of any known format, whatever its ending.

    Args:
        path: the file.
        check: called with `{layer: {parameter: shape}}` before any number is read.
        notes: extended by a line for each type of number that was cast or array left out.

    Raises:
        WeightsError: no such file, not a weight file, damaged, or holding NaN or infinity.
    """
    file = WeightFile(path)
    weights = file.read(check=check)
    if notes is not None:
        notes += file.notes
    return weights


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's path before a refusal that lacks it, and a way out after it."""
    try:
        yield
    except WeightsError as error:
        if printable(path) in str(error):
            raise
        way_out = " Download it again, or save the weights again."
        text = f"{printable(path)}: {error}{way_out * (error.code not in _OTHER_WAY_OUT)}"
        raise WeightsError(text, code=error.code) from None


def _kind(path: Path) -> Kind:
    """Determine the format from a file's first bytes, and from an archive's members."""
    with open_regular(path) as file:
        start = file.read(512)
        if not start:
            raise WeightsError("it is empty.", code="E_TRUNCATED")
        refuse_foreign(path, start)
        if start.startswith(b"PK\x03\x04"):
            with open_archive(file) as archive:
                names = archive.namelist()
            if not is_torch_archive(names) and "model.weights.h5" not in names:
                refuse_zip(path, names)
            return "torch" if is_torch_archive(names) else "npz" if is_npz(names) else "keras"
        if is_safetensors(start):  # its length may look like the first bytes of a pickle
            return "safetensors"
        if is_pickle(start):
            return "torch" if is_torch_pickle(start) else "pickle"
        if is_onnx(start) or path.suffix.lower() == ".onnx":
            return "onnx"
        if signature_start(file) is not None:
            return "h5"
    what = "not a weight file"
    if b"git-lfs" in start:
        what = "a Git LFS pointer instead of the file itself"
    elif b"<html" in start.lower() or b"<!doctype" in start.lower():
        what = "a web page, perhaps from a failed download, and not a weight file"
    raise WeightsError(f"it is {what}. Readable formats: {READABLE}.", code="E_FORMAT")


def _parse_tensors(path: Path, kind: Kind) -> ParsedFile:
    metadata: dict[str, str] = {}
    left_out: list[str] = []
    if kind == "safetensors":
        with open_regular(path) as file:
            spans, metadata = read_header(file)
        metadata.pop("format", None)
    elif kind == "npz":
        spans = read_npz(path)
    elif kind == "pickle":
        spans = read_pickle(path)
    else:
        state = read_state_dict(path)
        spans, metadata, left_out = state.spans, state.metadata, state.left_out
    if not spans:
        raise WeightsError("it holds no arrays.", code="E_MISSING")
    if has_package_names(spans):
        for span in spans.values():
            check_span(span)
        return ParsedFile(
            FileInfo(f"vggjax {_ENDINGS[kind]}", metadata),
            {
                layer: {param: (span, AS_IS) for param, span in params.items()}
                for layer, params in group_by_layer(spans).items()
            },
        )
    info, plan, others = _recognize(spans, _ENDINGS[kind], metadata)
    used = (span for arrays in plan.values() for span, _ in arrays.values())
    check_spans(used, size_bytes=path.stat().st_size)
    return ParsedFile(info, plan, left_out + others)


def _recognize(
    spans: dict[str, Span], ending: str, metadata: dict[str, str]
) -> tuple[FileInfo, Plan, list[str]]:
    """Return what the names of arrays say: the library, the layers, and what is left out."""
    found = find_layers(spans)
    if found is None and any("running_mean" in name for name in spans):
        found = find_in_order(spans)
    plan, others = ({}, []) if found else plan_arrays(spans)
    if not plan and (found := found or find_in_order(spans)):
        plan, others = found.plan, found.left_out
    if found:
        determined = None if found.doubt else "torch"
        info = FileInfo(f"{found.style} {ending}", metadata, determined, found.doubt)
        return info, plan, others
    if plan:
        doubt = "" if any("block1_conv1" in name for name in spans) else _NAMES_DOUBT
        return FileInfo(f"a VGG's arrays, {ending}", metadata, None, doubt), plan, others
    raise WeightsError(
        f"it holds {printable(next(iter(spans)))!r}, which is not a name of a known VGG. Known are "
        f"the names of this package (block1_conv1.kernel), torchvision (features.0.weight), timm, "
        f"Keras (block1_conv1/kernel), Caffe (conv1_1_W) and Flax (Conv_0/kernel).",
        code="E_NAME",
    )


def check_destination(path: str | os.PathLike, layout: str | None = None) -> tuple[str, str | None]:
    """Return the ending (one of `WRITABLE`) and the layout that `write_weights` would write.

    Raises:
        WeightsError: an unknown ending, a layout that the ending does not have, a folder, or a
            folder that does not exist.
    """
    path = Path(path)
    name = path.name.lower()
    ending = next((ending for ending in WRITABLE if name.endswith(ending)), None)
    if ending is None or name == ending:
        raise WeightsError(
            f"The ending decides the format of a weight file; got {printable(path.name)!r}. "
            f"Choices: {', '.join(WRITABLE)}.",
            code="E_WRITE",
        )
    layouts = LAYOUTS[ending]
    if layout is not None and layout not in layouts:
        endings = [other for other, choices in LAYOUTS.items() if layout in choices]
        fix = f"it goes with {', '.join(endings)}" if endings else "the ending alone decides"
        raise WeightsError(
            f"{ending} cannot have the layout {printable(layout)!r}: {fix}. Choices for {ending}: "
            f"{', '.join(layouts) or 'none'}.",
            code="E_WRITE",
        )
    if path.is_dir():
        raise WeightsError(f"{printable(path)} is a folder; name a file in it.", code="E_WRITE")
    if not path.parent.is_dir():
        raise WeightsError(
            f"There is no folder {printable(path.parent)}. Create it first.", code="E_WRITE"
        )
    if ending in (".pth", ".pt"):
        require_torch(printable(path.name))
    return ending, layout or next(iter(layouts), None)


def write_weights(
    path: str | os.PathLike,
    weights: Mapping[str, Mapping[str, np.ndarray]],
    *,
    metadata: dict[str, str] | None = None,
    layout: str | None = None,
) -> None:
    """Write weights in the format that the path's ending names.

    An existing file is replaced when the new one is complete. Every format keeps the `metadata`,
    where its own library ignores it.

    Raises:
        WeightsError: an unknown ending, a destination that cannot be written, or arrays that are
            not weights or that the layout cannot hold.
    """
    path, (ending, layout) = Path(path), check_destination(path, layout)
    checked, metadata = _checked(weights), metadata or {}
    ordered = in_table_order(checked)
    try:
        with atomic_write(path, sync=True) as temporary:
            if layout is None:
                _KERAS_WRITERS[ending](temporary, ordered, metadata)
            elif layout == "vggjax":
                tensors = [
                    TensorToWrite(f"{layer}.{param}", array)
                    for layer, params in checked.items()
                    for param, array in params.items()
                ]
                write_tensors(temporary, tensors, {"format": "vggjax", **metadata})
            elif ending == ".safetensors":
                write_tensors(temporary, to_torch(ordered, layout), {"format": "pt", **metadata})
            else:
                write_state_dict(temporary, to_torch(ordered, layout), metadata)
    except OSError as error:
        raise WeightsError(
            f"{printable(path)} cannot be written: {error.strerror or printable(error)}.",
            code="E_WRITE",
        ) from None


def _checked(weights: Mapping[str, Mapping[str, np.ndarray]]) -> "Weights":
    checked: Weights = {}
    for layer, params in weights.items():
        if not layer or "/" in layer or "." in layer or not layer.isprintable():
            raise WeightsError(
                f"{printable(layer)!r} cannot be the name of a layer in a weight file.",
                code="E_NAME",
            )
        for param, array in params.items():
            if param not in PARAMS:
                raise WeightsError(
                    f"The layer {layer!r} has a parameter {printable(param)!r}. Choices: "
                    f"{', '.join(PARAMS)}.",
                    code="E_NAME",
                )
            checked.setdefault(layer, {})[param] = np.ascontiguousarray(array, np.float32)
    if not checked:
        raise WeightsError("There are no weights to write.", code="E_MISSING")
    return checked
